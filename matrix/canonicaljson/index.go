package canonicaljson

// Member is where one member of a canonical object stands in its bytes.
type Member struct {
	Start uint32 // the key, at its opening quote
	Value uint32 // the value begins
	End   uint32 // and ends
}

// Key is the key as written, without quotes. No key that the specification names
// is written with escapes, so comparing it with one of them is exact.
func (m Member) Key(object []byte) []byte { return object[m.Start+1 : m.Value-2] }

// Raw is the raw value.
func (m Member) Raw(object []byte) []byte { return object[m.Value:m.End] }

// Index appends the places of all members to into, for code that looks at many
// members or cuts an object into pieces. ok is false when the end of the object
// is not where it has to be.
func Index(object []byte, into []Member) (_ []Member, ok bool) {
	if len(object) < 2 || object[0] != '{' {
		return into, false
	}
	if object[1] == '}' {
		return into, len(object) == 2
	}
	for i := 0; ; {
		m, end := next(object, i)
		if !m.ok {
			return into, false
		}
		into = append(into, Member{uint32(m.start), uint32(m.value), uint32(m.end)})
		if end >= len(object) || object[end] != ',' {
			return into, end == len(object)-1 && object[end] == '}'
		}
		i = end
	}
}
