// Package users is what belongs to a user: accounts, sessions, devices,
// end-to-end encryption keys, to-device messages, push rules, account data,
// profiles, receipts and presence.
//
// Service holds one small type per concept; start reading there. Each method
// is one domain operation: it checks its input, writes in one transaction and
// wakes whoever follows after the commit. Methods take parsed identifiers; who may call
// them is decided by the caller (the HTTP layers), what the data may be is decided here.
//
// Everything that clients follow over /sync takes a stream position. The
// methods that feed /sync (Changed, Pending, ...) take a storage.Querier, so that a
// response can be made from one snapshot, and answer for positions in (from, to].
package users
