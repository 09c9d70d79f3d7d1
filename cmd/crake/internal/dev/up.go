package dev

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/wire"
)

// sweepPatience is how long a process may take to end by itself before it is killed.
const sweepPatience = 5 * time.Second

// Up brings a cluster up and gives its status: forms one in a new directory, or brings the one that is there back. It
// checks all it can before it touches anything. When it fails, whatever it started has ended, and of a cluster that
// was never up nothing is left; the data of one that was up before stays.
func Up(ctx context.Context, c Config) (*api.Status, error) {
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if err := checkMachine(); err != nil {
		return nil, err
	}
	if err := checkPlaces(c.Dir, c.Mount); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	old, err := api.ReadClusterFile(c.Dir)
	switch {
	case err == nil:
		return c.again(ctx, old)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return c.first(ctx)
	}
	return nil, err
}

// first forms a new cluster.
func (c *Config) first(ctx context.Context) (st *api.Status, err error) {
	c.setDefaults()
	if err := errors.Join(c.checkShape(), c.checkSettings(api.ClusterFile{Computes: c.Computes})); err != nil {
		return nil, err
	}
	made, err := checkDir(c.Dir)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(CheckMountPoint(c.Mount), checkAPI(c.APIListen), c.checkSpace()); err != nil {
		return nil, err
	}
	top := topMissing(c.Dir)
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	unlock, err := lockDir(c.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Stat(filepath.Join(c.Dir, api.ClusterFileName)); err == nil {
		return nil, fmt.Errorf("another crake dev up has just formed a cluster in %s", c.Dir)
	}
	defer func() {
		if err == nil {
			return
		}
		// The caller's time may be over; taking away what was begun gets time of its own.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 4*sweepPatience)
		defer cancel()
		_, serr := sweep(ctx, c.Dir, sweepPatience)
		rest, rerr := removeCluster(c.Dir)
		if made && rest == "" && rerr == nil {
			rerr = removeEmpty(c.Dir, top)
		}
		err = errors.Join(err, serr, rerr)
	}()
	f, err := c.form(ctx)
	if err != nil {
		return nil, err
	}
	return c.start(ctx, f)
}

func (c *Config) setDefaults() {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.Drives, DefaultDrives)
	def(&c.Data, DefaultData)
	def(&c.Parity, DefaultParity)
	def(&c.Computes, DefaultComputes)
	def(&c.Buckets, DefaultBuckets)
	if c.DriveBytes == 0 {
		c.DriveBytes = DefaultDriveBytes
	}
	c.DriveBytes &^= wire.BlockSize - 1
}

// form makes the drives and, last, the cluster file.
func (c *Config) form(ctx context.Context) (*api.ClusterFile, error) {
	if _, err := removeCluster(c.Dir); err != nil { // what a killed dev up left
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(c.Dir, formingName), nil, 0o600); err != nil {
		return nil, err
	}
	var id wire.ClusterID
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	f := &api.ClusterFile{
		Version: api.ClusterFileVersion, ClusterID: hex.EncodeToString(id[:]), Name: "crake",
		DataStrips: c.Data, ParityStrips: c.Parity, Buckets: c.Buckets,
		Computes: c.Computes, Mount: c.Mount, Binary: c.Binary,
	}
	c.settings(f)
	if err := os.MkdirAll(filepath.Join(c.Dir, drivesName), 0o700); err != nil {
		return nil, err
	}
	for i := range c.Drives {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("stopped while making the drives: %w", context.Cause(ctx))
		}
		c.say("making drive %d of %d (%d MiB)", i+1, c.Drives, c.DriveBytes>>20)
		d := api.DriveSpec{ID: uint32(i + 1), Path: drivePath(c.Dir, i), SizeBytes: c.DriveBytes}
		if err := c.Format(ctx, d.Path, id, wire.DriveID(d.ID), d.SizeBytes); err != nil {
			return nil, err
		}
		f.Drives = append(f.Drives, d)
	}
	if err := api.WriteClusterFile(c.Dir, f); err != nil {
		return nil, err
	}
	return f, os.Remove(filepath.Join(c.Dir, formingName))
}

// again brings an existing cluster back.
func (c *Config) again(ctx context.Context, f *api.ClusterFile) (st *api.Status, err error) {
	if err := errors.Join(c.contradiction(f), c.checkSettings(*f)); err != nil {
		return nil, err
	}
	unlock, err := lockDir(c.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if api.Running(c.Dir) {
		return c.running(ctx, f)
	}
	if left, err := sweep(ctx, c.Dir, sweepPatience); err != nil {
		return nil, err
	} else if len(left) > 0 {
		c.say("ended %d processes of a run without mgmt", len(left))
	}
	if err := detachDead(c.Mount); err != nil {
		return nil, err
	}
	if f.Mount != c.Mount {
		if err := detachDead(f.Mount); err != nil {
			return nil, err
		}
	}
	listen := c.APIListen
	if listen == "" {
		listen = f.APIListen
	}
	if err := errors.Join(CheckMountPoint(c.Mount), checkAPI(listen), checkDrives(f)); err != nil {
		return nil, err
	}
	if err := c.adopt(f); err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 4*sweepPatience)
		defer cancel()
		_, serr := sweep(ctx, c.Dir, sweepPatience)
		err = errors.Join(err, serr)
	}()
	return c.start(ctx, f)
}

// running answers a dev up of a cluster that runs: it waits until all is up, and refuses what a running one cannot change.
func (c *Config) running(ctx context.Context, f *api.ClusterFile) (*api.Status, error) {
	if f.Mount != c.Mount {
		return nil, fmt.Errorf("the cluster in %s runs, mounted at %s; crake mount adds another mount, crake dev down stops it", c.Dir, f.Mount)
	}
	if c.Computes != 0 && c.Computes != f.Computes {
		return nil, fmt.Errorf("the cluster in %s runs with %d computes; stop it by crake dev down to change that", c.Dir, f.Computes)
	}
	if c.changes(*f) {
		return nil, fmt.Errorf("the cluster in %s runs with other settings of --api, --wire, --wire-encryption or --arena-*; stop it by crake dev down to change them", c.Dir)
	}
	c.say("the cluster in %s runs already", c.Dir)
	return c.wait(ctx)
}

// contradiction says which flag does not fit to what the cluster was formed with.
func (c *Config) contradiction(f *api.ClusterFile) error {
	var errs []error
	bad := func(flag string, asked, is any) {
		errs = append(errs, fmt.Errorf("%s %v contradicts the cluster in %s, which has %v; leave the flag out, or name another --dir", flag, asked, c.Dir, is))
	}
	if c.Drives != 0 && c.Drives != len(f.Drives) {
		bad("--drives", c.Drives, len(f.Drives))
	}
	if size := c.DriveBytes &^ (wire.BlockSize - 1); size != 0 {
		for _, d := range f.Drives {
			if d.SizeBytes != size {
				bad("--drive-size", fmt.Sprintf("%d MiB", size>>20), fmt.Sprintf("%d MiB", d.SizeBytes>>20))
				break
			}
		}
	}
	if c.Data != 0 && (c.Data != f.DataStrips || c.Parity != f.ParityStrips) {
		bad("--protection", fmt.Sprintf("%d+%d", c.Data, c.Parity), fmt.Sprintf("%d+%d", f.DataStrips, f.ParityStrips))
	}
	if c.Buckets != 0 && c.Buckets != f.Buckets {
		bad("--buckets", c.Buckets, f.Buckets)
	}
	return errors.Join(errs...)
}

// checkDrives refuses to start when more drives are missing than the protection bears.
func checkDrives(f *api.ClusterFile) error {
	var missing []string
	for _, d := range f.Drives {
		if _, err := os.Stat(d.Path); err != nil {
			missing = append(missing, d.Path)
		}
	}
	if len(missing) > f.ParityStrips {
		return fmt.Errorf("%d of %d drives are missing (%s), the protection bears %d; put them back",
			len(missing), len(f.Drives), strings.Join(missing, ", "), f.ParityStrips)
	}
	return nil
}

// adopt writes the settings that may change from one start to the next into the cluster file.
func (c *Config) adopt(f *api.ClusterFile) error {
	if f.Mount == c.Mount && f.Binary == c.Binary && !c.changes(*f) {
		return nil
	}
	f.Mount, f.Binary = c.Mount, c.Binary
	c.settings(f)
	return api.WriteClusterFile(c.Dir, f)
}

// start launches mgmt and waits until the mount answers.
func (c *Config) start(ctx context.Context, f *api.ClusterFile) (*api.Status, error) {
	c.say("starting mgmt, %d drives, %d computes and the mount at %s", len(f.Drives), f.Computes, f.Mount)
	if err := api.Launch(ctx, f.Binary, c.Dir); err != nil {
		return nil, err
	}
	return c.wait(ctx)
}

// wait waits until all is ready and says on the way what is not.
func (c *Config) wait(ctx context.Context) (*api.Status, error) {
	client := api.Open(c.Dir)
	defer client.Close()
	last, lastAt := "", time.Now()
	st, err := client.WaitReady(ctx, func(st *api.Status) {
		// Every change, but not more than once a second: a start that goes well says little.
		if text := progress(st); text != last && time.Since(lastAt) > time.Second {
			last, lastAt = text, time.Now()
			c.say("%s", text)
		}
	})
	if err != nil {
		return nil, errors.Join(err, lastExits(ctx, client))
	}
	if err := MountAnswers(ctx, c.Mount); err != nil {
		return nil, err
	}
	return st, nil
}

// lastExits tells how processes that are down ended, because the logs of a first start that fails are removed with it.
func lastExits(ctx context.Context, client *api.Client) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	all, err := client.Processes(ctx)
	if err != nil {
		return nil // what is wrong has been said
	}
	said := map[string]bool{}
	var errs []error
	for _, p := range all {
		if p.State != "up" && p.LastExit != "" && !said[p.LastExit] {
			said[p.LastExit] = true
			errs = append(errs, fmt.Errorf("%s ended: %s", p.Name, p.LastExit))
		}
	}
	return errors.Join(errs...)
}

func progress(st *api.Status) string {
	ready := 0
	for _, m := range st.Mounts {
		if m.Ready {
			ready++
		}
	}
	return fmt.Sprintf("waiting: %d of %d drives, %d of %d computes, %d of %d buckets, %d of %d mounts",
		st.Drives.Up, st.Drives.Total, st.Processes["compute"].Up, st.Processes["compute"].Total,
		st.Buckets.Serving, st.Buckets.Total, ready, len(st.Mounts))
}
