// Package endpoint is what the client API and the federation API share of HTTP:
// a route is data, a handler is a function that answers a value or an error,
// and one place turns either into a response, a log line and a metric.
//
// Start reading at Route and Serve.
package endpoint
