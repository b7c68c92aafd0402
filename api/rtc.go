package api

import "hanok/internal/endpoint"

// rtcTransport is something by which the members of a call reach each other. spec: MSC4143#discovery-of-transport-infrastructure
type rtcTransport struct {
	Type string `json:"type"`
	URL  string `json:"livekit_service_url"`
}

func (a *API) rtcTransportList() []rtcTransport {
	list := make([]rtcTransport, len(a.LiveKit))
	for i, url := range a.LiveKit {
		list[i] = rtcTransport{"livekit", url} // spec: MSC4195
	}
	return list
}

// rtcTransports lists the transports, the preferred one first. spec: MSC4143
func (a *API) rtcTransports(*endpoint.Request) (any, error) {
	return map[string]any{"rtc_transports": a.rtcTransportList()}, nil
}
