package canonicaljson

import "strings"

// SplitPath splits a dot-separated property path into property names.
// spec: appendices#dot-separated-property-paths
func SplitPath(path string) []string {
	var names []string
	var name strings.Builder
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case c == '\\' && i+1 < len(path) && (path[i+1] == '.' || path[i+1] == '\\'):
			i++
			name.WriteByte(path[i])
		case c == '.':
			names = append(names, name.String())
			name.Reset()
		default:
			name.WriteByte(c)
		}
	}
	return append(names, name.String())
}

// Fields are properties of an object, and of the objects in it, that are wanted; nil wants all of it.
type Fields map[string]Fields

// ParseFields reads dot-separated property paths. A path wants all that is in what it names.
// spec: appendices#dot-separated-property-paths
func ParseFields(paths []string) Fields {
	fields := Fields{}
	for _, path := range paths {
		at := fields
		names := SplitPath(path)
		for i, name := range names {
			below, known := at[name]
			switch {
			case i == len(names)-1:
				at[name] = nil
			case known && below == nil: // wanted as a whole
			default:
				if below == nil {
					below = Fields{}
					at[name] = below
				}
				at = below
				continue
			}
			break
		}
	}
	return fields
}

// Append appends what is wanted of a canonical object. An object of which nothing is wanted that it has stays, empty.
func (f Fields) Append(dst, object []byte) []byte {
	if f == nil || !IsObject(object) {
		return append(dst, object...)
	}
	dst = append(dst, '{')
	start := len(dst)
	for key, value := range Members(object) {
		below, wanted := f[key]
		if !wanted || below != nil && !IsObject(value) {
			continue
		}
		if len(dst) > start {
			dst = append(dst, ',')
		}
		dst = append(AppendString(dst, key), ':')
		dst = below.Append(dst, value)
	}
	return append(dst, '}')
}
