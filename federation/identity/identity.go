// Package identity asks identity servers who an e-mail address or phone number belongs to, and leaves invites
// with them. Only servers that the operator trusts are asked: they learn who invites whom.
// spec: identity-service-api
package identity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/go-json-experiment/json"

	"hanok/matrix"
	"hanok/matrix/glob"
	"hanok/matrix/signing"
	"hanok/rooms"
)

// What an identity server may cost.
const (
	timeout  = 15 * time.Second
	maxBytes = 64 << 10
)

// Options are what a Client works with.
type Options struct {
	// Trusted are globs of host[:port]; none: no server is asked anything.
	Trusted []string
	// HTTP must refuse addresses in private networks: its requests go where users say.
	HTTP *http.Client
}

// Client asks identity servers. It is rooms.IdentityServers.
type Client struct {
	trusted []glob.Glob
	http    *http.Client
}

var _ rooms.IdentityServers = (*Client)(nil)

// New makes a client.
func New(o Options) *Client {
	client := *o.HTTP
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // tokens go to nobody else
	c := &Client{http: &client}
	for _, pattern := range o.Trusted {
		c.trusted = append(c.trusted, glob.Compile(pattern, true))
	}
	return c
}

// check refuses servers that are not trusted: M_THREEPID_DENIED if none is, else M_SERVER_NOT_TRUSTED.
func (c *Client) check(host string) error {
	if len(c.trusted) == 0 {
		return matrix.Errorf(http.StatusForbidden, "M_THREEPID_DENIED", "This server does not invite by e-mail address or phone number: it trusts no identity server.")
	}
	if !slices.ContainsFunc(c.trusted, func(g glob.Glob) bool { return g.Match(host) }) {
		return matrix.Errorf(http.StatusForbidden, "M_SERVER_NOT_TRUSTED", "This server does not trust the identity server %q.", host)
	}
	return nil
}

// Lookup finds whose address it is. The address goes out as a hash only. spec: identity/lookupUsersV2
func (c *Client) Lookup(ctx context.Context, q rooms.AddressInvite) (matrix.UserID, error) {
	var details struct {
		Pepper     string   `json:"lookup_pepper"`
		Algorithms []string `json:"algorithms"`
	}
	if err := c.call(ctx, q, http.MethodGet, "hash_details", nil, &details); err != nil {
		return "", err
	}
	if !slices.Contains(details.Algorithms, "sha256") {
		return "", failed(q.IdentityServer, errors.New("it does not know sha256"))
	}
	hash := hashAddress(q.Address, q.Medium, details.Pepper)
	var found struct {
		Mappings map[string]string `json:"mappings"`
	}
	body := map[string]any{"algorithm": "sha256", "pepper": details.Pepper, "addresses": []string{hash}}
	if err := c.call(ctx, q, http.MethodPost, "lookup", body, &found); err != nil {
		return "", err
	}
	id := found.Mappings[hash]
	if id == "" { // missing, or null as some identity servers say it
		return "", nil
	}
	user, err := matrix.ParseUserID(id)
	if err != nil {
		return "", failed(q.IdentityServer, err)
	}
	return user, nil
}

// spec: identity-service-api#sha256
func hashAddress(address, medium, pepper string) string {
	sum := sha256.Sum256([]byte(address + " " + medium + " " + pepper))
	return signing.EncodeBase64URL(sum[:])
}

// StoreInvite leaves an invite with the identity server. spec: identity/storeInviteV2
func (c *Client) StoreInvite(ctx context.Context, q rooms.AddressInvite, about rooms.RoomDescription) (rooms.StoredInvite, error) {
	body := struct {
		Medium  string        `json:"medium"`
		Address string        `json:"address"`
		Room    matrix.RoomID `json:"room_id"`
		Sender  matrix.UserID `json:"sender"`
		rooms.RoomDescription
	}{q.Medium, q.Address, q.Room, q.Sender, about}
	var stored rooms.StoredInvite
	err := c.call(ctx, q, http.MethodPost, "store-invite", body, &stored)
	return stored, err
}

// KeyValid asks whether a key may still be believed, at the URL that came with it. spec: identity/isEphemeralPubKeyValidV2
func (c *Client) KeyValid(ctx context.Context, where, key string) (bool, error) {
	u, err := url.Parse(where)
	if err != nil || u.Scheme != "https" {
		return false, matrix.Forbidden("The key of the invite has no usable key_validity_url.")
	}
	if err := c.check(u.Host); err != nil {
		return false, err
	}
	query := u.Query()
	query.Set("public_key", key)
	u.RawQuery = query.Encode()
	var answer struct {
		Valid bool `json:"valid"`
	}
	if err := c.do(ctx, matrix.ServerName(u.Host), http.MethodGet, u.String(), "", nil, &answer); err != nil {
		return false, err
	}
	return answer.Valid, nil
}

// call makes a request of the identity service API.
func (c *Client) call(ctx context.Context, q rooms.AddressInvite, method, path string, body, out any) error {
	if _, err := matrix.ParseServerName(string(q.IdentityServer)); err != nil {
		return matrix.InvalidParam("id_server must be a host name, with a port if need be.")
	}
	if err := c.check(string(q.IdentityServer)); err != nil {
		return err
	}
	return c.do(ctx, q.IdentityServer, method, "https://"+string(q.IdentityServer)+"/_matrix/identity/v2/"+path, q.AccessToken, body, out)
}

func (c *Client) do(ctx context.Context, server matrix.ServerName, method, where, token string, body, out any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var sent io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("identity server: %w", err)
		}
		sent = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, where, sent)
	if err != nil {
		return fmt.Errorf("identity server: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return failed(server, err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxBytes+1))
	switch {
	case err != nil:
		return failed(server, err)
	case len(answer) > maxBytes:
		return failed(server, errors.New("the answer is too large"))
	case res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden:
		return matrix.Forbidden("The identity server %s does not accept id_access_token.", server)
	case res.StatusCode != http.StatusOK:
		return failed(server, fmt.Errorf("status %d", res.StatusCode))
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return failed(server, err)
	}
	return nil
}

func failed(server matrix.ServerName, cause error) error {
	return matrix.Errorf(http.StatusBadGateway, "M_UNKNOWN", "The identity server %s cannot be used.", server).Because(cause)
}
