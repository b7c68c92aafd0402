package signing_test

import (
	"errors"
	"fmt"

	"hanok/matrix/canonicaljson"
	"hanok/matrix/signing"
)

func Example() {
	seed, err := signing.DecodeBase64("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")
	if err != nil {
		panic(err)
	}
	key, err := signing.NewKey("ed25519:1", seed)
	if err != nil {
		panic(err)
	}
	doc, err := canonicaljson.Canonical([]byte(`{"two": "Two", "one": 1}`), canonicaljson.Strict)
	if err != nil {
		panic(err)
	}
	signed, err := key.Sign("domain", doc)
	if err != nil {
		panic(err)
	}
	fmt.Println(signing.KeyIDs("domain", signed), signing.Verify("domain", key.ID, key.Public(), signed))

	forged := canonicaljson.Set(signed, "one", []byte("2"))
	fmt.Println(errors.Is(signing.Verify("domain", key.ID, key.Public(), forged), signing.ErrBad))
	// Output:
	// [ed25519:1] <nil>
	// true
}

func ExampleVerifyBatch() {
	key, err := signing.Generate()
	if err != nil {
		panic(err)
	}
	message := []byte("a message")
	signature, err := signing.DecodeBase64(key.SignPayload(message))
	if err != nil {
		panic(err)
	}
	fmt.Println(signing.VerifyBatch([]signing.Check{
		{Public: key.Public(), Message: message, Signature: signature},
		{Public: key.Public(), Message: []byte("another"), Signature: signature},
	}))
	// Output: [true false]
}
