package users

import (
	"context"
	"strings"
	"testing"

	"hanok/matrix"
	"hanok/storage"
)

func TestReports(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		for _, r := range []Report{
			{Reporter: "@a:here.test", Room: "!r:x", Reason: "one\x00"},
			{Reporter: "@a:here.test", Room: "!r:x", Event: "$e", User: "@bad:x", Reason: "two"},
			{Reporter: "@b:here.test", User: "@bad:x"},
		} {
			if err := w.Reports.Add(ctx, r); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Reports.Add(ctx, Report{Reason: strings.Repeat("x", maxReason+1)}); !matrix.HasCode(err, "M_INVALID_PARAM") {
			t.Error(err)
		}
		page, err := w.Reports.List(ctx, 0, 2)
		if err != nil || len(page) != 2 || page[0].Reporter != "@b:here.test" || page[1].Reason != "two" || page[1].Event != "$e" || page[1].At == 0 {
			t.Fatal(page, err)
		}
		rest, err := w.Reports.List(ctx, page[1].ID, 2)
		if err != nil || len(rest) != 1 || rest[0].Reason != "one\x00" {
			t.Fatal(rest, err)
		}
		if got, err := w.Reports.Get(ctx, page[0].ID); err != nil || *got != page[0] {
			t.Error(got, err)
		}
		if err := w.Reports.Delete(ctx, page[0].ID); err != nil {
			t.Error(err)
		}
		for _, err := range []error{w.Reports.Delete(ctx, page[0].ID), func() error { _, err := w.Reports.Get(ctx, page[0].ID); return err }()} {
			if !matrix.HasCode(err, "M_NOT_FOUND") {
				t.Error(err)
			}
		}
		// The oldest go when there are too many.
		err = w.db.Write(ctx, func(tx *storage.Tx) error {
			return storage.InsertReport(ctx, tx, Report{ID: 1 << 40, Reporter: "@c:here.test"}, 2)
		})
		if err != nil {
			t.Fatal(err)
		}
		if all, err := w.Reports.List(ctx, 0, 10); err != nil || len(all) != 2 || all[0].ID != 1<<40 || all[1].Reason != "two" {
			t.Error(all, err)
		}
	})
}
