package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxAnswerBytes bounds an answer that the client reads: 10,000 events or 65,535 buckets of some hundred bytes.
const maxAnswerBytes = 32 << 20

// pollInterval is how often the Wait functions ask.
const pollInterval = 50 * time.Millisecond

// ErrNotRunning says that nobody listens where mgmt should.
var ErrNotRunning = errors.New("the cluster does not run")

// Client asks mgmt's REST API. All methods are safe for concurrent use, honour ctx, and return *Error for what mgmt
// refuses and an error that wraps ErrNotRunning when mgmt does not listen.
type Client struct {
	base string
	http *http.Client
}

// Open makes a client of the cluster in dir; nothing is asked yet.
func Open(dir string) *Client { return New("unix:" + APISocket(dir)) }

// New makes a client of an address: "unix:/path" or "tcp:host:port".
func New(addr string) *Client {
	network, target, _ := strings.Cut(addr, ":")
	host := "crake"
	if network == "tcp" {
		host = target
	}
	var d net.Dialer
	t := &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, network, target) },
		MaxIdleConns:    4,
		IdleConnTimeout: 10 * time.Second,
	}
	return &Client{base: "http://" + host + Prefix, http: &http.Client{Transport: t}}
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status gives the state of the cluster.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var out Status
	return &out, c.do(ctx, "GET", "/status", nil, &out)
}

// Processes lists all processes, mgmt and its keeper included.
func (c *Client) Processes(ctx context.Context) ([]Process, error) {
	var out []Process
	return out, c.do(ctx, "GET", "/processes", nil, &out)
}

// Drives lists the drives.
func (c *Client) Drives(ctx context.Context) ([]Drive, error) {
	var out []Drive
	return out, c.do(ctx, "GET", "/drives", nil, &out)
}

// DeactivateDrive makes a drive a failed one, until ActivateDrive: nothing is written to it or read from it any more. It is
// refused, with status 409, when data would become unavailable or all writes would wait, unless force is set.
func (c *Client) DeactivateDrive(ctx context.Context, id uint32, reason string, force bool) error {
	return c.do(ctx, "POST", fmt.Sprintf("/drives/%d/deactivate", id), DeactivateRequest{Reason: reason, Force: force}, nil)
}

// ActivateDrive takes a failed drive into use again, with what it holds.
func (c *Client) ActivateDrive(ctx context.Context, id uint32) error {
	return c.do(ctx, "POST", fmt.Sprintf("/drives/%d/activate", id), struct{}{}, nil)
}

// Buckets lists the buckets; detail asks their owners for counters too.
func (c *Client) Buckets(ctx context.Context, detail bool) ([]Bucket, error) {
	var out []Bucket
	return out, c.do(ctx, "GET", "/buckets?detail="+strconv.FormatBool(detail), nil, &out)
}

// PGs lists the placement groups.
func (c *Client) PGs(ctx context.Context) ([]PG, error) {
	var out []PG
	return out, c.do(ctx, "GET", "/pgs", nil, &out)
}

// Filesystems lists the filesystems.
func (c *Client) Filesystems(ctx context.Context) ([]Filesystem, error) {
	var out []Filesystem
	return out, c.do(ctx, "GET", "/filesystems", nil, &out)
}

// CreateFilesystem makes an empty filesystem.
func (c *Client) CreateFilesystem(ctx context.Context, name string) (*Filesystem, error) {
	var out Filesystem
	return &out, c.do(ctx, "POST", "/filesystems", FSRequest{Name: name}, &out)
}

// RemoveFilesystem removes an empty filesystem that is not mounted.
func (c *Client) RemoveFilesystem(ctx context.Context, name string) error {
	return c.do(ctx, "DELETE", "/filesystems/"+url.PathEscape(name), nil, nil)
}

// Mounts lists the mounts that are wanted on this server.
func (c *Client) Mounts(ctx context.Context) ([]Mount, error) {
	var out []Mount
	return out, c.do(ctx, "GET", "/mounts", nil, &out)
}

// AddMount starts a frontend for fs at path (absolute) and returns when it is mounted, or with the reason why it is not;
// then nothing is left of it. The mount comes back when the cluster is started again.
func (c *Client) AddMount(ctx context.Context, fs, path string) (*Mount, error) {
	var out Mount
	return &out, c.do(ctx, "POST", "/mounts", MountRequest{FS: fs, Path: path}, &out)
}

// RemoveMount unmounts path and stops its frontend; it returns when both are done.
func (c *Client) RemoveMount(ctx context.Context, path string) error {
	return c.do(ctx, "DELETE", "/mounts", MountRequest{Path: path}, nil)
}

// Events lists events, oldest first.
func (c *Client) Events(ctx context.Context, f EventFilter) ([]Event, error) {
	q := url.Values{}
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	if f.After > 0 {
		q.Set("after", strconv.FormatUint(f.After, 10))
	}
	if f.Severity != "" {
		q.Set("severity", f.Severity)
	}
	if f.Type != "" {
		q.Set("type", f.Type)
	}
	var out []Event
	return out, c.do(ctx, "GET", "/events?"+q.Encode(), nil, &out)
}

// Stop asks for the orderly stop of the whole cluster and returns when it has begun; see StopAndWait. A mount point that
// somebody uses makes it refuse, with status 409, unless force is set.
func (c *Client) Stop(ctx context.Context, force bool) (*StopResponse, error) {
	var out StopResponse
	return &out, c.do(ctx, "POST", "/stop", StopRequest{Force: force}, &out)
}

// WaitReady waits until everything that is wanted has come up: drives, computes, all buckets served, mounts. It returns
// the last status. A mount that failed to start ends it with that reason. onProgress, when not nil, is called with each
// status on the way.
func (c *Client) WaitReady(ctx context.Context, onProgress func(*Status)) (*Status, error) {
	var last *Status
	for {
		st, err := c.Status(ctx)
		if err == nil {
			last = st
			if onProgress != nil {
				onProgress(st)
			}
			if done, err := ready(st); done || err != nil {
				return st, err
			}
		} else if e := (*Error)(nil); errors.As(err, &e) {
			return last, err
		}
		select {
		case <-ctx.Done():
			return last, notReady(last, err)
		case <-time.After(pollInterval):
		}
	}
}

func ready(st *Status) (bool, error) {
	for _, m := range st.Mounts {
		if m.Error != "" && !m.Ready {
			return false, fmt.Errorf("mount of %s at %s failed: %s", m.FS, m.Path, m.Error)
		}
		if !m.Ready {
			return false, nil
		}
	}
	h := st.Health.State
	return h == HealthOK || h == HealthDegraded, nil
}

func notReady(last *Status, err error) error {
	if last != nil {
		return fmt.Errorf("not ready in time: %s: %s", last.Health.State, strings.Join(last.Health.Reasons, "; "))
	}
	return fmt.Errorf("not ready in time: %w", err)
}

func (c *Client) do(ctx context.Context, method, path string, body, out any) error {
	var rd io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, rd)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return dialError(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	if err != nil {
		return err
	}
	if len(b) > maxAnswerBytes {
		return fmt.Errorf("%s %s: answer over %d bytes", method, path, maxAnswerBytes)
	}
	if resp.StatusCode/100 != 2 {
		e := &Error{}
		if json.Unmarshal(b, e) != nil || e.Message == "" {
			e.Message = fmt.Sprintf("%s %s: %s", method, path, resp.Status)
		}
		e.Status = resp.StatusCode
		return e
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s %s: bad answer: %w", method, path, err)
	}
	return nil
}

func dialError(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return fmt.Errorf("%w: %w", ErrNotRunning, op)
	}
	return err
}
