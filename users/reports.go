package users

import (
	"context"
	"errors"
	"fmt"
	"math"

	"hanok/matrix"
	"hanok/storage"
)

// Reports are what users reported as inappropriate, for the administrators to look at.
// spec: client-server-api#reporting-content
type Reports struct{ *core }

// Report is one report. ID and At are filled in by Add.
type Report = storage.Report

const (
	maxReports     = 100_000
	maxReason      = 4096 // bytes
	maxReportsPage = 500
)

// Add stores a report. The caller has checked that its subject exists and may be known to the reporter.
func (s *Reports) Add(ctx context.Context, r Report) error {
	if len(r.Reason) > maxReason {
		return matrix.InvalidParam("The reason is longer than %d bytes", maxReason)
	}
	r.At = s.now()
	err := s.DB.Write(ctx, func(tx *storage.Tx) error {
		pos, err := tx.NextPosition()
		if err != nil {
			return err
		}
		r.ID = int64(pos)
		return storage.InsertReport(ctx, tx, r, maxReports)
	})
	if err != nil {
		return fmt.Errorf("add report: %w", err)
	}
	return nil
}

// List returns up to limit reports, the newest first; before is the ID of the last one of the page before, 0 for the first page.
func (s *Reports) List(ctx context.Context, before int64, limit int) ([]Report, error) {
	if before <= 0 {
		before = math.MaxInt64
	}
	list, err := storage.ListReports(ctx, s.DB, before, min(max(limit, 1), maxReportsPage))
	if err != nil {
		return nil, fmt.Errorf("list reports: %w", err)
	}
	return list, nil
}

var errNoReport = matrix.NotFound("There is no such report")

// Get returns one report: M_NOT_FOUND.
func (s *Reports) Get(ctx context.Context, id int64) (*Report, error) {
	r, err := storage.GetReport(ctx, s.DB, id)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, errNoReport
	}
	if err != nil {
		return nil, fmt.Errorf("get report: %w", err)
	}
	return &r, nil
}

// Delete removes a report that was dealt with: M_NOT_FOUND.
func (s *Reports) Delete(ctx context.Context, id int64) error {
	err := s.DB.Write(ctx, func(tx *storage.Tx) error {
		found, err := storage.DeleteReport(ctx, tx, id)
		if err == nil && !found {
			return errNoReport
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("delete report: %w", err)
	}
	return nil
}
