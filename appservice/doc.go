// Package appservice is what this server does for application services: bridges and bots that act as many users and are told of
// all that concerns them.
//
// Services knows who is registered and what belongs to whom (services.go). A reader per service follows the event stream with a cursor of its own
// (reader.go), finds what concerns it (interest.go, ephemeral.go) and has it delivered in transactions, one at a time, each stored before it is
// sent and the same when it is sent again (deliver.go). A service that does not answer costs its cursor and one stored transaction. What this server asks of
// services is in query.go, thirdparty.go and ping.go. What services ask of us comes through package api. Start reading at Services.Run.
package appservice
