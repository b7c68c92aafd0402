// Package api is the client-server API over HTTP: each handler decodes and
// authorises a request, calls one domain method and answers its result.
//
// Start reading at routes.go: it lists every endpoint with its authorisation,
// rate-limit class and limits, on one page.
package api
