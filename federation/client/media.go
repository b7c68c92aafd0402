package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"hanok/matrix"
	"hanok/media"
)

// Answers says whether a server was heard from and has not failed to answer since.
func (c *Client) Answers(server matrix.ServerName) bool { return c.opts.Peers.Heard(server) }

// Download starts the download of a file of another server. The body lives as long as ctx. A server that did not answer lately is asked for one
// file at a time: a room may show hundreds of pictures from it.
// spec: ss/getContent
func (c *Client) Download(ctx context.Context, server matrix.ServerName, mediaID string, wait time.Duration) (*media.RemoteFile, error) {
	res, err := c.Open(ctx, Request{
		Operation: "getContent", Method: http.MethodGet, Destination: server, Probe: true,
		Path: v1("media", "download", mediaID), Query: url.Values{"timeout_ms": {strconv.FormatInt(wait.Milliseconds(), 10)}},
	})
	if Unrecognised(err) {
		return c.downloadLegacy(ctx, server, mediaID, wait)
	}
	if err != nil {
		return nil, err
	}
	file, err := c.parts(ctx, server, res)
	if err != nil {
		_ = res.Body.Close()
		return nil, &Error{Destination: server, Status: http.StatusOK, Retry: true, Cause: fmt.Errorf("answer to getContent: %w", err)}
	}
	return file, nil
}

// parts reads up to the second part of a multipart answer: the file, or where it is.
func (c *Client) parts(ctx context.Context, server matrix.ServerName, res *http.Response) (*media.RemoteFile, error) {
	kind, params, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/mixed" || params["boundary"] == "" {
		return nil, fmt.Errorf("content type %q is not multipart/mixed", res.Header.Get("Content-Type"))
	}
	reader := multipart.NewReader(res.Body, params["boundary"])
	metadata, err := reader.NextRawPart()
	if err != nil {
		return nil, err
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(metadata, maxErrorBytes+1)); err != nil || n > maxErrorBytes {
		return nil, errors.Join(err, ErrTooLarge)
	}
	content, err := reader.NextRawPart()
	if err != nil {
		return nil, err
	}
	if location := content.Header.Get("Location"); location != "" {
		_ = res.Body.Close()
		return c.follow(ctx, server, location)
	}
	return &media.RemoteFile{
		Body: partBody{content, res.Body}, Length: -1,
		ContentType: content.Header.Get("Content-Type"), Filename: filename(content.Header.Get("Content-Disposition")),
	}, nil
}

// partBody reads a part and closes the response it is in.
type partBody struct {
	io.Reader
	io.Closer
}

// follow fetches a file from where the server says it is: any HTTPS address on the Internet.
func (c *Client) follow(ctx context.Context, server matrix.ServerName, location string) (*media.RemoteFile, error) {
	u, err := url.Parse(location)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("location %q is no https URL", location)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", Agent(c.opts.Version))
	res, err := c.opts.Resolver.HTTPClient().Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		_ = res.Body.Close()
		return nil, fmt.Errorf("the address that %s gave answered %d", server, res.StatusCode)
	}
	return plainFile(res), nil
}

// downloadLegacy asks in the way of servers before v1.11. spec: cs/getContent
func (c *Client) downloadLegacy(ctx context.Context, server matrix.ServerName, mediaID string, wait time.Duration) (*media.RemoteFile, error) {
	res, err := c.Open(ctx, Request{
		Operation: "getContentLegacy", Method: http.MethodGet, Destination: server, Probe: true, Unsigned: true,
		Path: []string{"_matrix", "media", "v3", "download", string(server), mediaID},
		Query: url.Values{
			"allow_remote": {"false"}, "timeout_ms": {strconv.FormatInt(wait.Milliseconds(), 10)},
		},
	})
	if err != nil {
		return nil, err
	}
	return plainFile(res), nil
}

func plainFile(res *http.Response) *media.RemoteFile {
	return &media.RemoteFile{
		Body: res.Body, Length: res.ContentLength,
		ContentType: res.Header.Get("Content-Type"), Filename: filename(res.Header.Get("Content-Disposition")),
	}
}

func filename(disposition string) string {
	if disposition == "" {
		return ""
	}
	_, params, err := mime.ParseMediaType(disposition)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(params["filename"])
}
