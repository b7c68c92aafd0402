package canonicaljson

import "slices"

// Set returns the object with the member set to a raw canonical value; nil is as
// good as {}. The input is not changed.
func Set(canonical []byte, key string, raw []byte) []byte {
	if len(canonical) < 2 {
		canonical = []byte("{}")
	}
	from, to := 1, 1 // the text that the new member takes the place of
	before := false  // whether a member stands before it
	replaced := false
	for m, i := first(canonical); m.ok; m, i = next(canonical, i) {
		c := compareKey(m.key, key)
		if c >= 0 {
			from, to = m.start, m.start
			if replaced = c == 0; replaced {
				to = m.end
			}
			break
		}
		from, to, before = m.end, m.end, true
	}
	out := make([]byte, 0, len(canonical)+len(key)+len(raw)+8)
	out = append(out, canonical[:from]...)
	if before && canonical[from-1] != ',' {
		out = append(out, ',')
	}
	out = AppendString(out, key)
	out = append(out, ':')
	out = append(out, raw...)
	if !replaced && to < len(canonical) && canonical[to] == '"' {
		out = append(out, ',')
	}
	return append(out, canonical[to:]...)
}

// Delete returns the object without the named members; the input itself if it has
// none of them. The input is not changed.
func Delete(canonical []byte, keys ...string) []byte {
	var out []byte
	kept := 0 // canonical[kept:] is to be looked at, what stands before is in out
	for m, i := first(canonical); m.ok; m, i = next(canonical, i) {
		if !slices.ContainsFunc(keys, func(k string) bool { return compareKey(m.key, k) == 0 }) {
			continue
		}
		if out == nil {
			out = make([]byte, 0, len(canonical))
		}
		out = append(out, canonical[kept:m.start]...)
		kept = m.end
		switch {
		case kept < len(canonical) && canonical[kept] == ',':
			kept++ // "a":1,|"b":2,|"c":3
		case out[len(out)-1] == ',':
			out = out[:len(out)-1] // "a":1|,"b":2|}
		}
	}
	if out == nil {
		return canonical
	}
	return append(out, canonical[kept:]...)
}
