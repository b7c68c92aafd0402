package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"hanok/federation/client"
	"hanok/federation/keyring"
	"hanok/federation/queue"
	"hanok/internal/endpoint"
	"hanok/internal/strictjson"
	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/rooms"
	"hanok/storage"
)

// processTimeout bounds the work on one room's part of a transaction, fetching of missing events included.
const processTimeout = 15 * time.Minute

// transaction is what another server sends. Its origin is whoever signed the request.
type transaction struct {
	PDUs pduList `json:"pdus"`
	EDUs eduList `json:"edus"`
}

// pduList and eduList refuse more than a transaction may hold as they are read: M_INVALID_PARAM.
type (
	pduList []jsontext.Value
	eduList []edu
)

func (l *pduList) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	return strictjson.EachElement(dec, queue.MaxPDUs, func(v jsontext.Value) error {
		*l = append(*l, v.Clone())
		return nil
	})
}

func (l *eduList) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	return strictjson.EachElement(dec, queue.MaxEDUs, func(v jsontext.Value) error {
		var e edu
		err := json.Unmarshal(v, &e)
		*l = append(*l, e)
		return err
	})
}

type edu struct {
	Type    string         `json:"edu_type"`
	Content jsontext.Value `json:"content"`
}

// digest tells a transaction from others with the same ID.
func (t transaction) digest() []byte {
	sum := sha256.New()
	add := func(part []byte) {
		sum.Write(binary.AppendUvarint(nil, uint64(len(part))))
		sum.Write(part)
	}
	for _, p := range t.PDUs {
		add(p)
	}
	add(nil)
	for _, e := range t.EDUs {
		add([]byte(e.Type))
		add(e.Content)
	}
	return sum.Sum(nil)
}

type transactionAnswer struct {
	PDUs map[matrix.EventID]pduResult `json:"pdus"`
}

type pduResult struct {
	Error string `json:"error,omitzero"`
}

// sendTransaction answers when everything in the transaction is durable. A
// repeated transaction gets the first one's answer, also while that is still being worked on. One that comes with the ID of another and something
// else in it is not that one: Dendrite keeps the ID of a transaction to which it got no answer, and adds what has come up since.
// spec: ss/sendTransaction
func (s *Server) sendTransaction(r *endpoint.Request) (any, error) {
	from, id := origin(r), r.Var("txnId")
	if len(id) > 255 {
		return nil, matrix.InvalidParam("The transaction ID is too long.")
	}
	var txn transaction
	if err := r.Decode(&txn); err != nil {
		return nil, err
	}
	if !s.enter(from) {
		return nil, matrix.Errorf(http.StatusTooManyRequests, "M_LIMIT_EXCEEDED", "Wait for the answer to a transaction before sending the next.").With("retry_after_ms", int64(1000))
	}
	defer s.leave(from)
	// A sender that gives up will repeat the transaction: what was begun is finished all the same.
	digest := txn.digest()
	done := s.transactions.DoChan(string(from)+" "+id+" "+string(digest), func() (any, error) {
		return s.process(s.life, from, id, txn, digest)
	})
	select {
	case res := <-done:
		if res.Err != nil {
			return nil, res.Err
		}
		answer, _ := res.Val.([]byte)
		return endpoint.Raw(answer), nil
	case <-r.Ctx().Done():
		return nil, r.Ctx().Err()
	}
}

// maxTransactions is how many transactions of one server are worked on at once. The specification
// allows one; the others are for senders that gave up waiting and begin again.
const maxTransactions = 5

func (s *Server) enter(from matrix.ServerName) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.underWay[from] == maxTransactions {
		return false
	}
	s.underWay[from]++
	return true
}

func (s *Server) leave(from matrix.ServerName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.underWay[from]--; s.underWay[from] == 0 {
		delete(s.underWay, from)
	}
}

func (s *Server) process(ctx context.Context, from matrix.ServerName, id string, txn transaction, digest []byte) ([]byte, error) {
	stored, err := storage.GetInboundTransaction(ctx, s.opts.DB, from, id)
	switch {
	case err == nil && bytes.Equal(stored.Digest, digest):
		return stored.Response, nil
	case err != nil && !errors.Is(err, storage.ErrNotFound):
		return nil, err
	}
	var wg sync.WaitGroup
	var edusErr error
	wg.Go(func() { edusErr = s.receiveEDUs(ctx, from, txn.EDUs) })
	results, slow := s.receivePDUs(ctx, from, txn.PDUs)
	wg.Wait()
	if edusErr != nil {
		return nil, edusErr
	}
	answer, err := json.Marshal(transactionAnswer{results}, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	var staged map[*roomBatch][]storage.Position
	err = s.opts.DB.Write(ctx, func(tx *storage.Tx) (err error) {
		if staged, err = stage(ctx, tx, from, slow); err != nil {
			return err
		}
		kept := storage.InboundTransaction{Origin: from, ID: id, Digest: digest, Response: answer, Received: matrix.TimestampOf(s.opts.Now())}
		if err := storage.PutInboundTransaction(ctx, tx, kept); err != nil {
			return err
		}
		if s.received.Add(1)%trimTransactionsEvery == 0 {
			return storage.TrimInboundTransactions(ctx, tx, from, maxTransactionsKept)
		}
		return nil
	})
	if err != nil {
		for _, b := range slow {
			s.unstaged(b.part())
		}
		return nil, err
	}
	for _, b := range slow {
		s.workers.Go(func() {
			<-b.done
			s.unstage(b, staged[b])
		})
	}
	return answer, nil
}

// The answers to the last transactions of a server are kept, and looked at now and then whether there are more: a sender
// repeats the last one only.
const (
	maxTransactionsKept   = 2000
	trimTransactionsEvery = 256
)

// roomBatch is the part of a transaction that belongs to one room.
type roomBatch struct {
	origin  matrix.ServerName
	room    matrix.RoomID
	pdus    [][]byte
	done    chan struct{} // closed when results are there
	results map[matrix.EventID]error
	failed  error // why some were not processed that may yet be, another time
}

// receivePDUs hands the events of each room to the engine: rooms side by side, the events of a room in
// order. It waits for all of them, but not for ever for a room that has to fetch what it misses: such
// rooms are returned as slow, and so are those for which that failed for the moment. Their events must be stored before
// the transaction is answered: its sender will not send them again.
func (s *Server) receivePDUs(ctx context.Context, from matrix.ServerName, pdus []jsontext.Value) (results map[matrix.EventID]pduResult, slow []*roomBatch) {
	batches := map[matrix.RoomID]*roomBatch{}
	for _, p := range pdus {
		var head struct {
			Room string `json:"room_id"`
		}
		if err := json.Unmarshal(p, &head); err != nil {
			continue // no ID to answer under
		}
		// An event without room ID (the creation of a room in v12) starts a room that we cannot be in.
		room, err := matrix.ParseRoomID(head.Room)
		if err != nil {
			continue
		}
		if batches[room] == nil {
			batches[room] = &roomBatch{origin: from, room: room, done: make(chan struct{})}
		}
		batches[room].pdus = append(batches[room].pdus, p)
	}
	for _, b := range batches {
		s.start(ctx, b)
	}
	patient, cancel := context.WithTimeout(ctx, s.opts.Patience)
	defer cancel()
	results = make(map[matrix.EventID]pduResult, len(pdus))
	for _, b := range batches {
		done := b.doneWithin(patient)
		kept := (!done || b.failed != nil) && s.mayStage(b)
		if kept {
			slow = append(slow, b)
		}
		if kept && !done {
			for _, id := range s.eventIDs(ctx, b.room, b.pdus) {
				results[id] = pduResult{}
			}
			continue
		}
		<-b.done
		for id, err := range b.results {
			result := pduResult{s.explain(err)}
			if kept && passing(err) {
				result.Error = "" // it is tried again
			}
			results[id] = result
		}
	}
	return results, slow
}

// doneWithin waits for the results; false if ctx ends first.
func (b *roomBatch) doneWithin(ctx context.Context) bool {
	select {
	case <-b.done:
		return true
	case <-ctx.Done():
	}
	select {
	case <-b.done:
		return true
	default:
		return false
	}
}

// start works on a batch in the background, for as long as the server lives.
func (s *Server) start(ctx context.Context, b *roomBatch) {
	s.workers.Go(func() {
		defer close(b.done)
		defer s.recovered(&b.failed)
		ctx, cancel := context.WithTimeout(keyring.OnBehalf(ctx, b.origin), processTimeout)
		defer cancel()
		b.results = s.receiveRoom(ctx, b.origin, b.room, b.pdus)
		for _, err := range b.results {
			if passing(err) {
				b.failed = err
			}
		}
	})
}

// passing says whether an event may be processed another time: a failure of ours, or of a server that was asked for what comes
// before it, or does not know that yet.
func passing(err error) bool {
	var peer *client.Error
	if errors.As(err, &peer) {
		return peer.Retry || peer.Peer != nil && peer.Peer.Code == rooms.CodePartialState
	}
	if errors.Is(err, rooms.ErrUnsettled) {
		return true
	}
	_, refused := matrix.AsError(err)
	return err != nil && !refused
}

// recovered keeps a panic in the work on one transaction from ending the server.
func (s *Server) recovered(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("panic: %v", p)
		s.opts.Log.Error().Interface("panic", p).Bytes("stack", debug.Stack()).Msg("federation: panic in a transaction")
	}
}

func (s *Server) receiveRoom(ctx context.Context, from matrix.ServerName, room matrix.RoomID, pdus [][]byte) map[matrix.EventID]error {
	out := make(map[matrix.EventID]error, len(pdus))
	// A room that is not known may be one that a user of ours is joining right now.
	if err := s.opts.Rooms.AllowsServer(ctx, room, from); err != nil && !matrix.HasCode(err, "M_NOT_FOUND") {
		for _, id := range s.eventIDs(ctx, room, pdus) {
			out[id] = err
		}
		return out
	}
	for _, r := range s.opts.Rooms.Receive(ctx, from, room, pdus) {
		switch {
		case r.ID == "":
		case r.Rejected():
			// Processed, like an event that is soft-failed: what became of it is nothing that the sender can mend.
			s.opts.Log.Debug().Err(r.Err).Str("event", string(r.ID)).Msg("federation: event rejected")
			out[r.ID] = nil
		case errors.Is(r.Err, rooms.ErrUnjudged) && !passing(r.Err):
			// As good as rejected: it names what nobody has, and nothing can be built on it here.
			s.opts.Log.Debug().Err(r.Err).Str("event", string(r.ID)).Msg("federation: event left out, because it cannot be judged")
			out[r.ID] = nil
		default:
			out[r.ID] = r.Err
		}
	}
	s.sayFarewell(ctx, from, room, pdus)
	return out
}

// eventIDs finds the IDs of events that are refused unread; none if we do not know the room's version.
func (s *Server) eventIDs(ctx context.Context, room matrix.RoomID, pdus [][]byte) []matrix.EventID {
	snapshot, err := s.opts.Rooms.Snapshot(ctx, room)
	if err != nil {
		return nil
	}
	var ids []matrix.EventID
	for _, p := range pdus {
		if e, err := event.Parse(snapshot.Version, p); err == nil {
			ids = append(ids, e.ID())
		}
	}
	return ids
}

// explain is what the sender is told about an event that was not processed.
func (s *Server) explain(err error) string {
	if err == nil {
		return ""
	}
	if e, ok := matrix.AsError(err); ok {
		return e.Message
	}
	s.opts.Log.Error().Err(err).Msg("federation: event not processed")
	return "The event could not be processed."
}
