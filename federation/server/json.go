package server

import (
	"strconv"

	"hanok/internal/endpoint"
	"hanok/matrix/canonicaljson"
)

// objectBuilder writes a JSON object around events that are JSON already. Marshalling
// would parse every one of them again.
type objectBuilder struct{ b []byte }

func (o *objectBuilder) key(k string) {
	if len(o.b) == 0 {
		o.b = append(o.b, '{')
	} else {
		o.b = append(o.b, ',')
	}
	o.b = append(canonicaljson.AppendString(o.b, k), ':')
}

func (o *objectBuilder) raw(k string, value []byte) {
	o.key(k)
	o.b = append(o.b, value...)
}

func (o *objectBuilder) text(k, value string) {
	o.key(k)
	o.b = canonicaljson.AppendString(o.b, value)
}

func (o *objectBuilder) integer(k string, value int64) {
	o.key(k)
	o.b = strconv.AppendInt(o.b, value, 10)
}

func (o *objectBuilder) boolean(k string, value bool) {
	o.key(k)
	o.b = strconv.AppendBool(o.b, value)
}

func (o *objectBuilder) texts(k string, values []string) {
	o.key(k)
	o.b = append(o.b, '[')
	for i, v := range values {
		if i > 0 {
			o.b = append(o.b, ',')
		}
		o.b = canonicaljson.AppendString(o.b, v)
	}
	o.b = append(o.b, ']')
}

func (o *objectBuilder) events(k string, events [][]byte) {
	size := len(o.b) + len(k) + 8
	for _, e := range events {
		size += len(e) + 1
	}
	if cap(o.b) < size {
		o.b = append(make([]byte, 0, size+size/8), o.b...)
	}
	o.key(k)
	o.b = append(o.b, '[')
	for i, e := range events {
		if i > 0 {
			o.b = append(o.b, ',')
		}
		o.b = append(o.b, e...)
	}
	o.b = append(o.b, ']')
}

func (o *objectBuilder) done() endpoint.Raw {
	if len(o.b) == 0 {
		return endpoint.Raw("{}")
	}
	return append(o.b, '}')
}
