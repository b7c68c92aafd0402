// Package matrix is the root of the protocol core: the identifiers of the
// Matrix specification and the one error type that may cross the wire.
//
// The packages below it are pure: no I/O, no clock, no logger, no SQL. They
// are canonicaljson and signing (bytes), roomversion and event (PDUs),
// eventauth and stateres (what a room accepts), policyserver, pushrules, glob and acl.
// Start reading at event.
package matrix
