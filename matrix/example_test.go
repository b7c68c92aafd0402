package matrix_test

import (
	"fmt"

	"hanok/matrix"
)

func ExampleParseUserID() {
	id, err := matrix.ParseUserID("@alice:example.org:8448")
	fmt.Println(id.Localpart(), id.Server(), id.Server().Host(), err)

	_, err = matrix.ParseUserID("alice")
	fmt.Println(err)

	old, _ := matrix.ParseUserID("@Älice:example.org") // lives on in old rooms
	fmt.Println(old.Historical(), old.Compliant())
	// Output:
	// alice example.org:8448 example.org <nil>
	// M_INVALID_PARAM: The user ID must start with '@'
	// true false
}

func ExampleParseLink() {
	link, err := matrix.ParseLink("https://matrix.to/#/%23somewhere%3Aexample.org?via=elsewhere.ca")
	fmt.Println(link.Alias, link.Via, err)
	fmt.Println(link.URI())
	// Output:
	// #somewhere:example.org [elsewhere.ca] <nil>
	// matrix:r/somewhere:example.org?via=elsewhere.ca
}

func ExampleError() {
	err := fmt.Errorf("join: %w", matrix.Forbidden("You are banned from this room"))
	e, _ := matrix.AsError(err)
	fmt.Println(e.Status, e.Code, matrix.HasCode(err, "M_FORBIDDEN"))
	// Output: 403 M_FORBIDDEN true
}
