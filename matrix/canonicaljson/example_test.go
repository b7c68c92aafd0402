package canonicaljson_test

import (
	"fmt"

	"hanok/matrix/canonicaljson"
)

func ExampleCanonical() {
	doc, err := canonicaljson.Canonical([]byte(`{"b": "\u65e5", "a": 1}`), canonicaljson.Strict)
	fmt.Println(string(doc), err)

	_, err = canonicaljson.Canonical([]byte(`{"a": 1, "\u0061": 2}`), canonicaljson.Strict)
	fmt.Println(err)
	_, err = canonicaljson.Canonical([]byte(`{"a": 1.5}`), canonicaljson.Strict)
	fmt.Println(err)
	// Output:
	// {"a":1,"b":"日"} <nil>
	// M_BAD_JSON: JSON not accepted: duplicate key in the object at byte 0
	// M_BAD_JSON: JSON not accepted: number with fraction or exponent, or negative zero, at byte 6
}

func ExampleMembers() {
	for key, raw := range canonicaljson.Members([]byte(`{"content":{"body":"x"},"depth":3,"type":"m.room.message"}`)) {
		fmt.Println(key, string(raw))
	}
	// Output:
	// content {"body":"x"}
	// depth 3
	// type "m.room.message"
}

func ExampleSet() {
	doc := []byte(`{"a":1,"c":{"d":2}}`)
	fmt.Println(string(canonicaljson.Set(doc, "b", []byte("[]"))))
	fmt.Println(string(canonicaljson.Delete(doc, "a")))
	inner, _ := canonicaljson.GetObject(doc, "c")
	fmt.Println(canonicaljson.GetInt(inner, "d"))
	// Output:
	// {"a":1,"b":[],"c":{"d":2}}
	// {"c":{"d":2}}
	// 2 true
}
