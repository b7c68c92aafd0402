package keyring

import (
	"context"
	"time"

	"hanok/federation/client"
	"hanok/matrix"
	"hanok/storage"
)

// maxQuery bounds how many servers one query to us may name, and maxQueryFetches how many of them are asked because of it: anybody
// may make a query, and each of these requests costs more than to name a server.
const maxQuery, maxQueryFetches = 500, 50

// Query answers as a notary: the documents we have of the servers, signed by us too. A server is
// asked when what we have is not valid for long enough; if it does not
// answer, what we have is returned all the same.
// spec: ss/perspectivesKeyQuery, ss/bulkPerspectivesKeyQuery
func (r *Ring) Query(ctx context.Context, criteria client.KeyCriteria) ([][]byte, error) {
	if len(criteria) > maxQuery {
		return nil, matrix.TooLarge("At most %d servers can be asked for at once.", maxQuery)
	}
	needs := map[matrix.ServerName][]need{}
	for server, ids := range criteria {
		if len(ids) == 0 {
			needs[server] = []need{{validAt: r.now()}}
		}
		for id, at := range ids {
			if at == 0 {
				at = r.now()
			}
			// Nothing is believed for longer than this, so asking for more must not make us fetch every time.
			needs[server] = append(needs[server], need{id, min(at, r.now()+maxValidity/2)})
		}
	}
	missing, err := r.missing(ctx, needs)
	if err != nil {
		return nil, err
	}
	asked := 0
	for server := range missing {
		if asked++; asked > maxQueryFetches {
			delete(missing, server)
		}
	}
	asked = len(missing)
	if err := r.ensure(ctx, missing, forQuestions); err != nil {
		return nil, err
	}
	if err := r.renew(ctx, criteria, maxQueryFetches-asked); err != nil {
		return nil, err
	}
	out := [][]byte{}
	for server, ids := range criteria {
		documents, err := r.documents(ctx, server, ids)
		if err != nil {
			return nil, err
		}
		for _, d := range documents {
			signed, err := r.opts.Key.Sign(string(r.opts.ServerName), d)
			if err != nil {
				return nil, err
			}
			out = append(out, signed)
		}
	}
	return out, nil
}

// renewPatience is how long an answer waits for newer documents than those that are valid still.
const renewPatience = 3 * time.Second

// renew asks again those servers, most of them at the most, half of the life of whose document is over: what is handed out should not be about
// to expire. spec: ss/getServerKey
func (r *Ring) renew(ctx context.Context, criteria client.KeyCriteria, most int) error {
	stale := map[matrix.ServerName][]need{}
	for server := range criteria {
		known, err := r.load(ctx, server)
		if err != nil {
			return err
		}
		if server != r.opts.ServerName && len(stale) < most && known.halfOver(r.now()) {
			stale[server] = nil
		}
	}
	if len(stale) == 0 {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, renewPatience)
	defer cancel()
	r.askDirectly(waiting, stale, forQuestions)
	return ctx.Err()
}

// halfOver says whether half of the life of the newest document is over.
func (s *serverKeys) halfOver(now matrix.Timestamp) bool {
	var newest storage.ServerKey
	for _, k := range s.keys {
		if !k.Expired && k.FetchedAt > newest.FetchedAt {
			newest = k
		}
	}
	return newest.FetchedAt > 0 && now > newest.FetchedAt+(validUntil(newest)-newest.FetchedAt)/2
}

// documents are the different documents in which the wanted keys were last seen.
func (r *Ring) documents(ctx context.Context, server matrix.ServerName, ids map[matrix.KeyID]matrix.Timestamp) ([][]byte, error) {
	if server == r.opts.ServerName {
		own, err := r.Own()
		return [][]byte{own}, err
	}
	known, err := r.load(ctx, server)
	if err != nil {
		return nil, err
	}
	_, all := ids[""]
	all = all || len(ids) == 0
	var out [][]byte
	seen := map[string]bool{}
	for id, k := range known.keys {
		if _, wanted := ids[id]; !all && !wanted {
			continue
		}
		if doc := string(k.Document); !seen[doc] {
			seen[doc] = true
			out = append(out, k.Document)
		}
	}
	return out, nil
}
