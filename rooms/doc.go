// Package rooms is the room engine: how events are made, accepted, ordered,
// stored and read.
//
// There is one way for an event to enter a room, whoever made it: append.go
// builds local events on the head of the room, receive.go checks events of
// other servers, and both hand what they accept to the committer, which
// stores it, and publishes it to the Listener once it is visible to all readers.
//
// Start reading at engine.go, then head.go (pending.go: what is not committed) and append.go. By concept:
//
//   - into a room: append.go (local), sendable.go (what may be scheduled), receive.go, check.go, gap.go, fetch.go and place.go (remote), extremities.go, outsiders.go, redact.go, sticky.go, committer.go and batch_write.go
//   - states: resolve.go, state.go, history.go (who may see what)
//   - memberships: create.go, join.go, enter.go (through another server), invite.go, invite_signed.go, residence.go, third_party_invite.go, leave.go, membership.go, upgrade.go, userrooms.go
//   - pages: messages.go, backfill.go, timestamp.go, relations.go, aggregations.go, search.go
//   - for other servers: server_access.go (who may see what), serve.go, serve_join.go; questions to them: overtake.go
//   - the directory: alias.go, directory.go, published.go, summary.go, spaces.go, hierarchy.go
//   - rooms joined without their members: partial.go, then resync.go and restate.go (restate_order.go, restate_commit.go), provisional.go
//   - memory: cache.go (events), load.go (from the database into it)
//
// # Locks
//
// In this order; a lock may be taken while holding those above it only.
//
//  1. Engine.joins: one attempt per room to become resident by a remote join.
//  2. A lane of room.lanes: the batches of one server for one room are worked on one after the other, network requests included.
//  3. room.inbound: held while remote events are worked on, and never over a network request.
//  4. room.mu: the head. Never held over a network request or a commit, but over
//     reads of the database when something needed is not in a cache.
//  5. room.resolving: held while states are resolved, over reads of the database.
//  6. Engine.mu (the table of loaded rooms), room.pending, committer.mu, userRooms.mu,
//     recentChanges.mu, partials.mu, published.mu, cache locks: leaves, held for a few instructions (the
//     cache of events asks partials while it holds its own).
//
// The committer takes room.mu only to drop a head after a failed commit, and
// not at all while it publishes, which happens on the database's goroutine.
package rooms
