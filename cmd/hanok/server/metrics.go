package server

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"hanok/appservice"
	"hanok/federation/peers"
	"hanok/federation/queue"
	"hanok/internal/places"
	"hanok/push"
	"hanok/storage"
)

// metrics are one server's numbers, in a registry of their own.
type metrics struct {
	registry                *prometheus.Registry
	requests                *prometheus.HistogramVec
	outbound                *prometheus.HistogramVec
	delivery                *prometheus.HistogramVec
	sent                    *prometheus.CounterVec
	services, serviceEvents *prometheus.CounterVec
	pushes                  *prometheus.CounterVec
	gateways                *prometheus.HistogramVec
	pushAge                 prometheus.Histogram
	inFlight                prometheus.Gauge
	commits                 prometheus.Histogram
	writes                  *prometheus.CounterVec
}

// buckets are in seconds.
var buckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60}

func newMetrics(version string) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "hanok_http_request_seconds", Help: "Time to answer a request; operation is its operationId in the specification.",
			Buckets: buckets,
		}, []string{"api", "operation", "method", "status"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "hanok_http_requests_in_flight", Help: "Requests that are being answered now, waiting /sync requests among them.",
		}),
		outbound: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "hanok_federation_request_seconds", Help: "Time until another server answered; status 0 means that it did not. class: well, failing (has not answered lately), lost (for more than a day).",
			Buckets: buckets,
		}, []string{"operation", "class", "status"}),
		delivery: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "hanok_federation_delivery_seconds", Help: "Age of the oldest event of a transaction when another server had taken it.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60, 600, 3600, 86400},
		}, []string{"class"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hanok_federation_sent_total", Help: "What was sent to other servers; dropped is what they refused time and again.",
		}, []string{"class", "kind", "result"}),
	}
	m.services = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "hanok_appservice_transactions_total", Help: "Attempts to hand a transaction to an application service, by their result.",
	}, []string{"service", "result"})
	m.serviceEvents = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "hanok_appservice_events_total", Help: "Events that an application service has taken.",
	}, []string{"service"})
	m.pushes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "hanok_push_notifications_total", Help: "Notifications for push gateways. kind: event, or counts (of unread messages only). result: sent, failed (and tried again), rejected (the pusher is gone), dropped (read meanwhile, too old, or refused time and again).",
	}, []string{"kind", "result"})
	m.gateways = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "hanok_push_request_seconds", Help: "Time until a push gateway answered, or did not.",
		Buckets: buckets,
	}, []string{"result"})
	m.pushAge = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "hanok_push_delivery_seconds", Help: "Age of an event when a push gateway had taken it.",
		Buckets: []float64{.0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60, 600, 3600, 86400},
	})
	m.commits = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "hanok_storage_commit_seconds", Help: "Time of a transaction from its begin until it was durable; many writes may share one.",
		Buckets: buckets,
	})
	m.writes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "hanok_storage_writes_total", Help: "Writes to the database; failed are those that were undone.",
	}, []string{"result"})
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "hanok_build_info", Help: "1, with the version as a label.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	m.registry.MustRegister(build, m.requests, m.outbound, m.delivery, m.sent, m.services, m.serviceEvents, m.pushes, m.gateways, m.pushAge, m.inFlight, m.commits, m.writes, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// observer counts the requests that one API answers.
func (m *metrics) observer(api string) func(operation, method string, status int, elapsed time.Duration) {
	return func(operation, method string, status int, elapsed time.Duration) {
		m.requests.WithLabelValues(api, operation, method, strconv.Itoa(status)).Observe(elapsed.Seconds())
	}
}

// observeOutbound counts what this server asks of others; status 0 means that there was no answer.
func (m *metrics) observeOutbound(operation string, class peers.Class, status int, elapsed time.Duration) {
	m.outbound.WithLabelValues(operation, string(class), strconv.Itoa(status)).Observe(elapsed.Seconds())
}

// observeDelivery counts what was sent.
func (m *metrics) observeDelivery(d queue.Delivery) {
	result := "delivered"
	if d.Dropped {
		result = "dropped"
	} else if d.PDUs > 0 {
		m.delivery.WithLabelValues(string(d.Class)).Observe(d.Oldest.Seconds())
	}
	m.sent.WithLabelValues(string(d.Class), "event", result).Add(float64(d.PDUs))
	m.sent.WithLabelValues(string(d.Class), "edu", result).Add(float64(d.EDUs))
}

// watchOutbox exports how many servers something waits for.
func (m *metrics) watchOutbox(q *queue.Queue) {
	for _, class := range []peers.Class{peers.Well, peers.Failing, peers.Lost} {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "hanok_federation_destinations", Help: "Servers for which something is queued.",
			ConstLabels: prometheus.Labels{"class": string(class)},
		}, func() float64 { return float64(q.Destinations()[class]) }))
	}
}

// observeServiceTransaction counts attempts to tell an application service something.
func (m *metrics) observeServiceTransaction(service string, delivered bool, events int) {
	result := "delivered"
	if !delivered {
		result = "failed"
	}
	m.services.WithLabelValues(service, result).Inc()
	if delivered {
		m.serviceEvents.WithLabelValues(service).Add(float64(events))
	}
}

// watchServices exports how far each application service is behind.
func (m *metrics) watchServices(services *appservice.Services) {
	for _, x := range services.All() {
		labels := prometheus.Labels{"service": x.ID}
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "hanok_appservice_lag", Help: "Positions of the stream that an application service is behind.", ConstLabels: labels,
		}, func() float64 { return float64(services.Lag(x)) }), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "hanok_appservice_failing_seconds", Help: "For how long an application service has not taken what it is sent; 0 if it does.", ConstLabels: labels,
		}, func() float64 { return x.FailingFor().Seconds() }))
	}
}

// observeCommit counts what the database was asked to keep.
func (m *metrics) observeCommit(c storage.Commit) {
	m.commits.Observe(c.Took.Seconds())
	m.writes.WithLabelValues("committed").Add(float64(c.Writes - c.Failed))
	m.writes.WithLabelValues("failed").Add(float64(c.Failed))
}

// watchQueue exports the length of the queue of writes.
func (m *metrics) watchQueue(db *storage.DB) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hanok_storage_writes_queued", Help: "Writes that wait for their transaction to begin.",
	}, func() float64 { return float64(db.Queued()) }))
}

// watchConnections exports how many places of a listener are taken, and how many had to go.
func (m *metrics) watchConnections(address string, l *places.Listener) {
	labels := prometheus.Labels{"listener": address}
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hanok_http_connections", Help: "Open connections, and of HTTP/2 ones the requests beside the first.", ConstLabels: labels,
	}, func() float64 { return float64(l.Taken()) }))
	ended := func(reason string, count func(places.Ended) int64) {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name:        "hanok_http_connections_full_total",
			Help:        "Connections that had to go because all were taken. reason: idle (no request was being answered), busy (their address had more than others), refused.",
			ConstLabels: prometheus.Labels{"listener": address, "reason": reason},
		}, func() float64 { return float64(count(l.Ended())) }))
	}
	ended("idle", func(e places.Ended) int64 { return e.Idle })
	ended("busy", func(e places.Ended) int64 { return e.Busy })
	ended("refused", func(e places.Ended) int64 { return e.Turned })
}

// observePush counts what was sent to push gateways.
func (m *metrics) observePush(a push.Attempt) {
	m.pushes.WithLabelValues(a.Kind, a.Result).Inc()
	if a.Request > 0 {
		m.gateways.WithLabelValues(a.Result).Observe(a.Request.Seconds())
	}
	if a.Kind == "event" && a.Result == "sent" {
		m.pushAge.Observe(a.Age.Seconds())
	}
}

// watchPush exports how many pushers have something to send, and how many wait because they failed.
func (m *metrics) watchPush(s *push.Sender) {
	pushers := func(state string, count func() int) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "hanok_push_pushers", Help: "Pushers that have something to send now (active), and that wait because they failed (waiting).",
			ConstLabels: prometheus.Labels{"state": state},
		}, func() float64 { return float64(count()) }))
	}
	pushers("active", s.Active)
	pushers("waiting", s.Waiting)
}
