package mgmt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/netutil"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/wire"
)

// apiServer is one listener of the REST API.
type apiServer struct {
	l net.Listener
	s *http.Server
}

// listenAPI opens the unix socket of the API and, if configured, its TCP address.
func (w *worker) listenAPI() ([]*apiServer, error) {
	sock := api.APISocket(w.c.Dir)
	// We hold the worker's lock, so a socket that is there was left by one that is dead.
	if err := os.Remove(sock); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		return nil, err
	}
	servers := []*apiServer{w.newAPIServer(l, false)}
	if w.file.APIListen == "" {
		return servers, nil
	}
	// The API asks for no password, so it is for this machine only.
	addr, err := net.ResolveTCPAddr("tcp", w.file.APIListen)
	if err == nil && !addr.IP.IsLoopback() {
		err = errors.New("not a loopback address such as 127.0.0.1:14000")
	}
	if err == nil {
		l, err = net.ListenTCP("tcp", addr)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("API address %s: %w; choose another by --api-listen", w.file.APIListen, err), servers[0].l.Close())
	}
	w.tcp = l.Addr().String()
	return append(servers, w.newAPIServer(l, true)), nil
}

func (w *worker) newAPIServer(l net.Listener, tcp bool) *apiServer {
	return &apiServer{
		l: netutil.LimitListener(l, maxAPIConns),
		s: &http.Server{
			Handler: w.routes(tcp), ReadHeaderTimeout: apiReadTimeout, ReadTimeout: apiReadTimeout, IdleTimeout: apiIdleTimeout,
			WriteTimeout: apiWriteTimeout, MaxHeaderBytes: maxHeaderBytes, ErrorLog: log.New(io.Discard, "", 0),
		},
	}
}

// serve answers until ctx ends; requests under way are given a moment.
func (a *apiServer) serve(ctx context.Context) error {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		sctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if a.s.Shutdown(sctx) != nil {
			_ = a.s.Close()
		}
	})
	err := a.s.Serve(a.l)
	if !stop() {
		<-done
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// call answers one request: v is encoded as JSON.
type call func(r *http.Request) (v any, err error)

func (w *worker) routes(tcp bool) http.Handler {
	mux := http.NewServeMux()
	on := func(pattern string, f call) {
		method, path, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(method+" "+api.Prefix+path, func(rw http.ResponseWriter, r *http.Request) {
			if err := guard(r, tcp); err != nil {
				respond(rw, nil, err)
				return
			}
			r.Body = http.MaxBytesReader(rw, r.Body, maxBodyBytes)
			v, err := f(r)
			respond(rw, v, err)
		})
	}
	on("GET /ping", func(*http.Request) (any, error) { return struct{}{}, nil })
	on("GET /status", func(*http.Request) (any, error) { return w.status(), nil })
	on("GET /processes", func(*http.Request) (any, error) { return w.processes(), nil })
	on("GET /drives", func(*http.Request) (any, error) { return w.drives(), nil })
	on("POST /drives/{id}/deactivate", w.postDeactivate)
	on("POST /drives/{id}/activate", w.postActivate)
	on("GET /buckets", w.getBuckets)
	on("GET /pgs", func(*http.Request) (any, error) { return w.pgs(), nil })
	on("GET /filesystems", func(*http.Request) (any, error) { return w.filesystems(), nil })
	on("POST /filesystems", w.postFilesystem)
	on("DELETE /filesystems/{name}", func(r *http.Request) (any, error) {
		return struct{}{}, w.removeFilesystem(r.Context(), r.PathValue("name"))
	})
	on("GET /mounts", func(*http.Request) (any, error) { return w.mounts(), nil })
	on("POST /mounts", w.postMount)
	on("DELETE /mounts", w.deleteMount)
	on("GET /events", w.getEvents)
	on("POST /stop", w.postStop)
	mux.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		respond(rw, nil, fail(http.StatusNotFound, "GET "+api.Prefix+"/status is a beginning", "there is no %s %s", r.Method, r.URL.Path))
	})
	return mux
}

// guard keeps web pages of elsewhere, which a browser on this machine may show, from using the API over TCP: they cannot
// send this content type without asking first, nor our name as host.
func guard(r *http.Request, tcp bool) error {
	if r.Method != http.MethodGet && r.ContentLength != 0 && r.Header.Get("Content-Type") != "application/json" {
		return fail(http.StatusUnsupportedMediaType, "send JSON with Content-Type: application/json", "the body is no JSON")
	}
	if !tcp {
		return nil
	}
	if r.Method == http.MethodPost && r.Header.Get("Content-Type") != "application/json" {
		return fail(http.StatusUnsupportedMediaType, "send JSON with Content-Type: application/json", "the body is no JSON")
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if ip := net.ParseIP(strings.Trim(host, "[]")); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fail(http.StatusForbidden, "use 127.0.0.1", "host %q is not this machine", host)
	}
	return nil
}

// fail makes an error with its HTTP status and hint.
func fail(status int, hint, format string, args ...any) *api.Error {
	return &api.Error{Status: status, Hint: hint, Message: fmt.Sprintf(format, args...)}
}

func respond(rw http.ResponseWriter, v any, err error) {
	status := http.StatusOK
	if err != nil {
		e := toAPIError(err)
		status, v = e.Status, e
	}
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(status)
	enc := json.NewEncoder(rw)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // the asker has gone, or gets half an answer that does not parse
}

// toAPIError gives errors of the wire the status that fits.
func toAPIError(err error) *api.Error {
	var e *api.Error
	if errors.As(err, &e) {
		return e
	}
	status, hint := http.StatusInternalServerError, ""
	switch wire.KindOf(err) {
	case wire.KindInvalid:
		status = http.StatusBadRequest
	case wire.KindNotFound:
		status = http.StatusNotFound
	case wire.KindExists, wire.KindRefused, wire.KindNotEmpty, wire.KindOverLimit:
		status = http.StatusConflict
	case wire.KindUnavailable, wire.KindMoved, wire.KindStaleEpoch, wire.KindConnLost, wire.KindShutdown:
		status, hint = http.StatusServiceUnavailable, "see crake status, then try again"
	case wire.KindTimeout, wire.KindInterrupted:
		status, hint = http.StatusGatewayTimeout, "see crake status, then try again"
	}
	return fail(status, hint, "%s", err.Error())
}

// decode reads the JSON body of a request.
func decode(r *http.Request, v any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fail(http.StatusBadRequest, "", "body: %v", err)
	}
	return nil
}

func (w *worker) getBuckets(r *http.Request) (any, error) {
	detail := false
	if s := r.URL.Query().Get("detail"); s != "" {
		var err error
		if detail, err = strconv.ParseBool(s); err != nil {
			return nil, fail(http.StatusBadRequest, "use true or false", "detail=%q", s)
		}
	}
	out := w.buckets()
	if detail {
		w.askBuckets(r.Context(), out)
	}
	return out, nil
}

func (w *worker) getEvents(r *http.Request) (any, error) {
	q := r.URL.Query()
	num := func(key string, def, most uint64) (uint64, error) {
		s := q.Get(key)
		if s == "" {
			return def, nil
		}
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil || v > most {
			return 0, fail(http.StatusBadRequest, "", "%s=%q is no number up to %d", key, s, most)
		}
		return v, nil
	}
	limit, err := num("limit", api.DefaultEvents, api.MaxEvents)
	if err != nil {
		return nil, err
	}
	after, err := num("after", 0, 1<<64-1)
	if err != nil {
		return nil, err
	}
	severity, ok := severities[q.Get("severity")]
	if !ok {
		return nil, fail(http.StatusBadRequest, "use info, warning or error", "severity %q", q.Get("severity"))
	}
	return w.events(int(limit), after, severity, q.Get("type")), nil
}

var severities = map[string]uint8{
	"": 0, api.SeverityInfo: wire.SeverityInfo, api.SeverityWarning: wire.SeverityWarning, api.SeverityError: wire.SeverityError,
}

func (w *worker) postFilesystem(r *http.Request) (any, error) {
	var req api.FSRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return w.createFilesystem(r.Context(), req.Name)
}

func (w *worker) postMount(r *http.Request) (any, error) {
	var req api.MountRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return w.addMount(r.Context(), req.FS, req.Path)
}

func (w *worker) deleteMount(r *http.Request) (any, error) {
	var req api.MountRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return struct{}{}, w.removeMount(r.Context(), req.Path)
}

func (w *worker) postStop(r *http.Request) (any, error) {
	var req api.StopRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return w.stop(r.Context(), req.Force)
}
