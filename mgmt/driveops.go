package mgmt

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/mgmt/internal/leader"
	"github.com/crakefs/crake/mgmt/internal/supervise"
	"github.com/crakefs/crake/wire"
)

// driveID gives the drive that a request names in its path.
func driveID(r *http.Request) (wire.DriveID, error) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 32)
	if err != nil || id == 0 {
		return 0, fail(http.StatusBadRequest, "crake cluster drive lists them", "%q is no drive id", r.PathValue("id"))
	}
	return wire.DriveID(id), nil
}

func (w *worker) postDeactivate(r *http.Request) (any, error) {
	id, err := driveID(r)
	if err != nil {
		return nil, err
	}
	var req api.DeactivateRequest
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	if req.Reason == "" {
		req.Reason = "no reason was given"
	}
	return struct{}{}, w.changeDrive(r.Context(), func(now leader.Millis, c *leader.Core) error {
		return c.Deactivate(now, id, req.Reason, req.Force)
	})
}

func (w *worker) postActivate(r *http.Request) (any, error) {
	id, err := driveID(r)
	if err != nil {
		return nil, err
	}
	var req struct{}
	if err := decode(r, &req); err != nil {
		return nil, err
	}
	return struct{}{}, w.changeDrive(r.Context(), func(now leader.Millis, c *leader.Core) error { return c.Activate(now, id) })
}

// changeDrive changes a drive's state and returns when that is written and published.
func (w *worker) changeDrive(ctx context.Context, f func(now leader.Millis, c *leader.Core) error) error {
	var ferr error
	err := w.d.Commit(ctx, func(now leader.Millis, c *leader.Core) { ferr = f(now, c) })
	var e *wire.Error
	if !errors.As(ferr, &e) {
		return err
	}
	text := "drive " + e.ID
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	switch e.Kind {
	case wire.KindNotFound:
		return fail(http.StatusNotFound, "crake cluster drive lists them", "%s", text)
	case wire.KindRefused:
		return fail(http.StatusConflict, "wait until other drives are back, or force it", "%s", text)
	case wire.KindExists:
		return fail(http.StatusConflict, "", "%s", text)
	}
	return ferr
}

// driveFailed says whether the process of a slot serves nothing but a drive that failed. It is not started again when it
// ends: it could not open its device, or nobody would ask it.
func driveFailed(s *leader.State, p *leader.Proc) bool {
	d := s.Drives[p.Drive]
	return p.Role == wire.RoleDrive && d != nil && d.Failed
}

// rest leaves the processes of failed drives running if they do, and lets nobody start them again; reconcile starts those
// that rested before.
//
// A process that is found running when mgmt starts is taken up all the same, so that it is ended with the cluster.
func (w *worker) rest(ctx context.Context, failed []supervise.Spec, running map[string]supervise.Status) error {
	var errs []error
	now := map[string]bool{}
	for _, s := range failed {
		now[s.Name] = true
		_, runs := running[s.Name]
		if _, found := w.sup.Found()[s.Name]; found && !runs && !w.resting[s.Name] {
			errs = append(errs, w.sup.Start(ctx, s))
		}
		w.sup.Pause(s.Name)
	}
	w.resting = now
	return errors.Join(errs...)
}
