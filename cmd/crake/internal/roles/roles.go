// Package roles makes the commands that run a role. mgmt writes their command lines; people need them only to look into
// one process.
package roles

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/cmd/crake/internal/size"
	"github.com/crakefs/crake/compute"
	"github.com/crakefs/crake/drive"
	"github.com/crakefs/crake/frontend"
	"github.com/crakefs/crake/mgmt"
	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/capture"
	"github.com/crakefs/crake/wire/copies"
	"github.com/crakefs/crake/wire/route"
)

// The least memory for file data with which a process of each role starts, in bytes.
const (
	MinDriveArena    = drive.MinArenaBytes
	MinComputeArena  = compute.MinArenaBytes
	MinFrontendArena = frontend.MinArenaBytes
)

// common are the flags that every role but mgmt has.
type common struct {
	name     string
	proc     uint32
	cluster  clusterFlag
	mgmt     string
	identity string
	listen   []string
	wire     string
	encrypt  bool
	arena    size.Flag
	capture  captureFlag
}

// dedicatedCore registers the flag of roles that can spin.
func dedicatedCore(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("dedicated-core", false, "the process is pinned to one core that no other process uses: wait for messages by looking for a moment before it sleeps")
}

func (c *common) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.name, "name", "", "name of the process, such as drive0")
	f.Uint32Var(&c.proc, "proc", 0, "number of the process in the cluster")
	f.Var(&c.cluster, "cluster", "id of the cluster, 32 hexadecimal digits")
	f.StringVar(&c.identity, "identity", "", "file by which the process proves who it is; mgmt writes one for each run")
	f.StringVar(&c.mgmt, "mgmt", "", "address of mgmt, such as unix:/path")
	f.StringArrayVar(&c.listen, "listen", nil, "address to listen at, such as unix:/path or tcp:127.0.0.1:0; may be given several times, best first")
	f.StringVar(&c.wire, "wire", "", "how to speak with processes of this server: shm, unix or tcp (default shm)")
	f.BoolVar(&c.encrypt, "wire-encryption", false, "encrypt what is said by TCP (TLS 1.3)")
	f.Var(&c.arena, "arena", "memory for file data")
	c.capture.register(cmd)
}

// tap makes the place where people can look at this process's frames.
func (c *common) tap(role wire.Role) *capture.Tap {
	return capture.New(capture.Origin{Role: role, Proc: wire.ProcID(c.proc), Cluster: wire.ClusterID(c.cluster), Name: c.name})
}

// clusterFlag is a cluster id.
type clusterFlag wire.ClusterID

// String gives the id, or "" when none was given.
func (c *clusterFlag) String() string {
	if *c == (clusterFlag{}) {
		return ""
	}
	return wire.ClusterID(*c).String()
}

// Type names the flag's value in the help.
func (c *clusterFlag) Type() string { return "ID" }

// Set reads an id.
func (c *clusterFlag) Set(s string) error {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(c) {
		return errors.New("want 32 hexadecimal digits")
	}
	copy(c[:], b)
	return nil
}

// logger writes events to standard error, which the supervisor keeps in a file.
func logger() *slog.Logger { return slog.New(slog.NewTextHandler(os.Stderr, nil)) }

// pinned gives the cores to which this process is pinned; none when it may use all of the machine.
func pinned() []uint32 {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil || set.Count() >= onlineCores() {
		return nil
	}
	var out []uint32
	for i := range uint32(8 * 128) { // bits of a CPUSet
		if set.IsSet(int(i)) {
			out = append(out, i)
		}
	}
	return out
}

// onlineCores counts the machine's cores; runtime.NumCPU would count only those of this process.
func onlineCores() int {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return runtime.NumCPU()
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "cpu") && !strings.HasPrefix(line, "cpu ") {
			n++
		}
	}
	return max(n, 1)
}

// Compute makes crake compute.
func Compute(version string) *cobra.Command {
	var c common
	var memory size.Flag
	var dedicated *bool
	cmd := &cobra.Command{
		Use: "compute", Short: "serve metadata and erasure coding of the buckets that mgmt assigns", Args: cobra.NoArgs,
		Example: "  crake compute --name compute0 --proc 7 --cluster ID --mgmt unix:DIR/run/mgmt.sock --listen unix:DIR/run/compute0.sock --identity DIR/run/compute0.identity",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := compute.Config{
				Name: c.name, Proc: wire.ProcID(c.proc), Cluster: wire.ClusterID(c.cluster), Mgmt: c.mgmt, Listen: c.listen, Wire: route.Wire(c.wire), Encrypt: c.encrypt, Identity: c.identity,
				Arena: int64(c.arena), Memory: int64(memory), Version: version, Cores: pinned(),
				DedicatedCore: *dedicated, Log: logger(), Capture: c.tap(wire.RoleCompute),
			}
			return serve(cmd.Context(), cfg.Validate, c.capture.during(cfg.Capture, c.listen, func(ctx context.Context) error { return compute.Run(ctx, cfg) }))
		},
	}
	c.register(cmd)
	dedicated = dedicatedCore(cmd)
	cmd.Flags().Var(&memory, "memory", "memory for databases")
	return cmd
}

// Mgmt makes crake mgmt.
func Mgmt(version string) *cobra.Command {
	cfg := mgmt.Config{Version: version}
	var looked captureFlag
	cmd := &cobra.Command{
		Use: "mgmt", Short: "manage a cluster: map, membership, processes, API", Args: cobra.NoArgs,
		Long:    "Runs mgmt of the cluster in DIR, which starts all other processes. crake dev up does this.",
		Example: "  crake mgmt --dir /var/lib/crake",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.Log = logger()
			run := func(ctx context.Context) error { return mgmt.Run(ctx, cfg) }
			if cfg.Worker { // the keeper speaks with nobody
				cfg.Capture = capture.New(capture.Origin{Role: wire.RoleMgmt, Name: "mgmt"})
				run = looked.during(cfg.Capture, []string{api.MgmtAddr(cfg.Dir)}, run)
			}
			return serve(cmd.Context(), cfg.Validate, run)
		},
	}
	cmd.Flags().StringVar(&cfg.Dir, "dir", "", "directory of the cluster, absolute")
	looked.register(cmd)
	cmd.Flags().BoolVar(&cfg.Worker, "worker", false, "run mgmt itself, without a keeper that restarts it")
	if err := cmd.Flags().MarkHidden("worker"); err != nil {
		panic(err) // the flag has just been made
	}
	return cmd
}

// serve validates and runs. A role that was asked to end by a signal ends without an error.
func serve(ctx context.Context, validate func() error, run func(context.Context) error) error {
	if err := validate(); err != nil {
		return err
	}
	defer copies.Watch(logger())()
	err := run(ctx)
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Drive makes crake drive and crake drive format.
func Drive(version string) *cobra.Command {
	var c common
	var device, engine string
	var scrubRate int
	var noDiscard bool
	var id uint32
	var dedicated *bool
	cmd := &cobra.Command{
		Use: "drive", Short: "serve a drive; drive format makes one", Args: cobra.NoArgs,
		Example: "  crake drive --name drive0 --proc 1 --cluster ID --device /dev/nvme0n1 --drive-id 1 --mgmt unix:DIR/run/mgmt.sock --listen unix:DIR/run/drive0.sock --identity DIR/run/drive0.identity",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := drive.Config{
				Name: c.name, Proc: wire.ProcID(c.proc), Cluster: wire.ClusterID(c.cluster), Mgmt: c.mgmt, Listen: c.listen, Wire: route.Wire(c.wire), Encrypt: c.encrypt, Identity: c.identity,
				Arena: int64(c.arena), Devices: []drive.Device{{Path: device, ID: wire.DriveID(id)}}, Engine: engine,
				ScrubRate: scrubRate, NoDiscard: noDiscard, Version: version,
				Cores: pinned(), DedicatedCore: *dedicated, Log: logger(), Capture: c.tap(wire.RoleDrive),
			}
			return serve(cmd.Context(), cfg.Validate, c.capture.during(cfg.Capture, c.listen, func(ctx context.Context) error { return drive.Run(ctx, cfg) }))
		},
	}
	c.register(cmd)
	dedicated = dedicatedCore(cmd)
	cmd.Flags().StringVar(&device, "device", "", "the preallocated file or block device")
	cmd.Flags().Uint32Var(&id, "drive-id", 0, "number of the drive in the cluster")
	cmd.Flags().IntVar(&scrubRate, "scrub-rate", 0, "bytes a second that the drive reads to find what has rotted; 0: all of it once a week; -1: nothing")
	cmd.Flags().BoolVar(&noDiscard, "no-discard", false, "do not tell the device what is free (TRIM)")
	cmd.Flags().StringVar(&engine, "io-engine", "auto", "how device IO is done: io_uring, pread, or auto (io_uring where it can be had and gains)")
	cmd.AddCommand(formatCmd())
	return cmd
}

func formatCmd() *cobra.Command {
	var cluster clusterFlag
	var id uint32
	var bytes size.Flag
	var force bool
	cmd := &cobra.Command{
		Use: "format DEVICE", Short: "write an empty drive to a file or block device",
		Long: `Writes an empty drive. A device that holds anything (a drive, a filesystem, a partition table) is refused unless forced.
A file that does not exist is made, with --size.`,
		Example: "  crake drive format /dev/nvme0n1 --cluster 0123456789abcdef0123456789abcdef --drive-id 1",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("want one device; see crake drive format --help")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case cluster == (clusterFlag{}):
				return errors.New("--cluster is missing; see crake drive format --help")
			case id == 0:
				return errors.New("--drive-id is missing; see crake drive format --help")
			}
			cfg := drive.FormatConfig{
				Path: args[0], Cluster: wire.ClusterID(cluster), Drive: wire.DriveID(id), SizeBytes: int64(bytes), Force: force,
			}
			if err := drive.Format(cmd.Context(), cfg); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is drive %d of cluster %s\n", args[0], id, wire.ClusterID(cluster))
			return err
		},
	}
	cmd.Flags().Var(&cluster, "cluster", "id of the cluster, 32 hexadecimal digits")
	cmd.Flags().Uint32Var(&id, "drive-id", 0, "number of the drive in the cluster, from 1 on")
	cmd.Flags().Var(&bytes, "size", "size of a file to make, or how much of the device to use (default all of it)")
	cmd.Flags().BoolVar(&force, "force", false, "destroy what the device holds")
	return cmd
}

// FormatDrive makes a file and an empty drive of it, for dev up.
func FormatDrive(ctx context.Context, path string, cluster wire.ClusterID, id wire.DriveID, sizeBytes int64) error {
	return drive.Format(ctx, drive.FormatConfig{Path: path, Cluster: cluster, Drive: id, SizeBytes: sizeBytes})
}

// Frontend makes crake frontend.
func Frontend(version string) *cobra.Command {
	var c common
	var fs, mount string
	var dirty size.Flag
	cmd := &cobra.Command{
		Use: "frontend", Short: "serve a mount", Args: cobra.NoArgs,
		Example: "  crake frontend --name frontend0 --proc 9 --cluster ID --fs default --mount MNT --mgmt unix:DIR/run/mgmt.sock --listen unix:DIR/run/frontend0.sock --identity DIR/run/frontend0.identity",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := frontend.Config{
				Name: c.name, Proc: wire.ProcID(c.proc), Cluster: wire.ClusterID(c.cluster), Mgmt: c.mgmt, Listen: c.listen, Wire: route.Wire(c.wire), Encrypt: c.encrypt, Identity: c.identity,
				ArenaBytes: int64(c.arena), FS: fs, Mount: mount, DirtyBytes: int64(dirty), Version: version, Cores: pinned(), Log: logger(),
				Capture: c.tap(wire.RoleFrontend),
			}
			return serve(cmd.Context(), cfg.Validate, c.capture.during(cfg.Capture, c.listen, func(ctx context.Context) error { return frontend.Run(ctx, cfg) }))
		},
	}
	c.register(cmd)
	cmd.Flags().StringVar(&fs, "fs", "", "name of the filesystem")
	cmd.Flags().StringVar(&mount, "mount", "", "where to mount it, absolute")
	cmd.Flags().Var(&dirty, "dirty", "bound of unsynced writes in memory")
	return cmd
}
