package roomversion_test

import (
	"fmt"

	"hanok/matrix/roomversion"
)

// What changed for redactions from one room version to the next.
func Example() {
	for _, id := range []roomversion.ID{"10", "11"} {
		v, ok := roomversion.Get(id)
		fmt.Println(v.ID, ok, v.RedactsInContent, v.ImplicitCreator)
	}
	_, ok := roomversion.Get("org.example.mine")
	fmt.Println(ok, roomversion.ValidID("org.example.mine"))
	// Output:
	// 10 true false false
	// 11 true true true
	// false true
}
