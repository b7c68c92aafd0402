package appservice

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"hanok/internal/strictjson"
)

const (
	// protocolLifetime is for how long what a service says of a protocol is believed; protocolRetry is when one that did not answer is asked again.
	protocolLifetime = time.Hour
	protocolRetry    = time.Minute
)

// protocols remembers what a service said of the protocols it offers.
type protocols struct {
	mu   sync.Mutex
	said map[string]metadata
}

type metadata struct {
	protocol map[string]json.RawMessage // nil: nothing of use
	until    time.Time
}

// protocol is what the service says of a protocol that it offers; nil if nothing. spec: as/getProtocolMetadata
func (x *Service) protocol(ctx context.Context, name string) map[string]json.RawMessage {
	x.known.mu.Lock()
	was, ok := x.known.said[name]
	x.known.mu.Unlock()
	if ok && x.now().Before(was.until) {
		return was.protocol
	}
	said := metadata{was.protocol, x.now().Add(protocolRetry)} // of one that does not answer now, what it said before is true still
	// What is remembered must not depend on whether this client waits.
	a, err := x.lookUp(context.WithoutCancel(ctx), "/thirdparty/protocol/"+url.PathEscape(name))
	var got map[string]json.RawMessage
	if err == nil && a.ok() && strictjson.Unmarshal(a.body, &got) == nil && got != nil {
		said = metadata{got, x.now().Add(protocolLifetime)}
	}
	x.known.mu.Lock()
	defer x.known.mu.Unlock()
	if x.known.said == nil {
		x.known.said = make(map[string]metadata)
	}
	x.known.said[name] = said // of the registered protocols only: there are not many
	return said.protocol
}

// lookUp asks once: somebody waits, and others may have the answer.
func (x *Service) lookUp(ctx context.Context, path string) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	if err := x.takeTurn(ctx); err != nil {
		return answer{}, err
	}
	defer x.endTurn()
	return x.ask(ctx, http.MethodGet, path, "/_matrix/app/unstable"+path, nil)
}

// Instance is the instance_id of a network of the service, by which clients ask for its room directory. spec: cs/getProtocols
func (x *Service) Instance(network string) string { return x.ID + "|" + network }

// Protocol is what all services together say of a protocol; nil if none knows it. spec: cs/getProtocolMetadata
func (s *Services) Protocol(ctx context.Context, name string) map[string]json.RawMessage {
	asked := s.urls(func(x *Service) bool { return slices.Contains(x.Protocols, name) })
	said := make([]map[string]json.RawMessage, len(asked))
	var group errgroup.Group
	for i, x := range asked {
		group.Go(func() error {
			said[i] = x.protocol(ctx, name)
			return nil
		})
	}
	_ = group.Wait() // there is no error
	var whole map[string]json.RawMessage
	instances := []json.RawMessage{}
	for i, one := range said {
		if one == nil {
			continue
		}
		if whole == nil {
			whole = make(map[string]json.RawMessage, len(one))
			for key, value := range one {
				whole[key] = value
			}
		}
		instances = append(instances, asked[i].instances(one["instances"])...)
	}
	if whole != nil {
		whole["instances"] = marshal(instances)
	}
	return whole
}

// instances adds the instance_id to those that have a network_id. What is no object is left out.
func (x *Service) instances(raw json.RawMessage) []json.RawMessage {
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return nil
	}
	out := make([]json.RawMessage, 0, len(list))
	for _, element := range list {
		var one map[string]json.RawMessage
		if json.Unmarshal(element, &one) != nil || one == nil {
			continue
		}
		var network string
		if json.Unmarshal(one["network_id"], &network) == nil {
			one["instance_id"] = marshal(x.Instance(network))
		}
		out = append(out, marshal(one))
	}
	return out
}

// AllProtocols is what the services say of all protocols, by name. spec: cs/getProtocols
func (s *Services) AllProtocols(ctx context.Context) map[string]map[string]json.RawMessage {
	var names []string
	for _, x := range s.urls(func(*Service) bool { return true }) {
		names = append(names, x.Protocols...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	said := make([]map[string]json.RawMessage, len(names))
	var group errgroup.Group
	for i, name := range names {
		group.Go(func() error {
			said[i] = s.Protocol(ctx, name)
			return nil
		})
	}
	_ = group.Wait() // there is no error
	out := make(map[string]map[string]json.RawMessage, len(names))
	for i, name := range names {
		if said[i] != nil {
			out[name] = said[i]
		}
	}
	return out
}

// The kinds of things that can be looked up, and what names one in Matrix.
const (
	LookUpUser     = "user"
	LookUpLocation = "location"
)

var matrixID = map[string]string{LookUpUser: "userid", LookUpLocation: "alias"}

// LookUp asks the services with a protocol, or all that have one if protocol is "", for users or locations, and joins their answers. What is malformed is left out.
// spec: as/queryUserByProtocol, as/queryLocationByProtocol, as/queryUserByID, as/queryLocationByAlias
func (s *Services) LookUp(ctx context.Context, kind, protocol string, fields url.Values) []json.RawMessage {
	path := "/thirdparty/" + kind
	which := func(x *Service) bool { return len(x.Protocols) > 0 }
	if protocol != "" {
		path += "/" + url.PathEscape(protocol)
		which = func(x *Service) bool { return slices.Contains(x.Protocols, protocol) }
	}
	if len(fields) > 0 {
		path += "?" + fields.Encode()
	}
	asked := s.urls(which)
	found := make([][]json.RawMessage, len(asked))
	var group errgroup.Group
	for i, x := range asked {
		group.Go(func() error {
			a, err := x.lookUp(ctx, path)
			if err == nil && a.ok() {
				found[i] = wellFormed(a.body, matrixID[kind])
			}
			return nil
		})
	}
	_ = group.Wait() // there is no error
	return slices.Concat(found...)
}

// wellFormed picks from a list the objects that have a protocol, fields and an ID.
func wellFormed(body []byte, id string) []json.RawMessage {
	var list []json.RawMessage
	if strictjson.Unmarshal(body, &list) != nil {
		return nil
	}
	return slices.DeleteFunc(list, func(raw json.RawMessage) bool {
		var one map[string]json.RawMessage
		var name, protocol string
		var fields map[string]json.RawMessage
		return json.Unmarshal(raw, &one) != nil || json.Unmarshal(one[id], &name) != nil || name == "" ||
			json.Unmarshal(one["protocol"], &protocol) != nil || json.Unmarshal(one["fields"], &fields) != nil
	})
}
