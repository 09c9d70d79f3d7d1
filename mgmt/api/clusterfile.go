package api

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/crakefs/crake/wire"
	"github.com/crakefs/crake/wire/route"
)

// ClusterFileName is the file in a cluster's folder that `crake dev up` writes and mgmt reads.
const ClusterFileName = "cluster.json"

// ClusterFileVersion is the newest layout of ClusterFile that this software reads.
const ClusterFileVersion = 1

// maxClusterFileBytes bounds the file: some hundred bytes a drive, so this is thousands of drives.
const maxClusterFileBytes = 4 << 20

// maxSocketPathBytes is the longest path of a unix socket that Linux takes (sun_path without its final zero).
const maxSocketPathBytes = 107

// ClusterFile is cluster.json: what a one-server cluster is made of. The first start of mgmt forms the cluster from it;
// later only the settings of this machine (paths, cores, memory, API address) are taken from it, never the formed facts
// (ClusterID, Buckets, DataStrips, ParityStrips): those lie in etcd from then on.
type ClusterFile struct {
	// Version is the layout of the file; ClusterFileVersion.
	Version int `json:"version"`

	// Formed facts.

	// ClusterID is 32 hexadecimal digits, random.
	ClusterID string `json:"cluster_id"`
	// Name is for people.
	Name string `json:"name"`
	// DataStrips is k of the protection k+m.
	DataStrips int `json:"data_strips"`
	// ParityStrips is m.
	ParityStrips int `json:"parity_strips"`
	// Buckets is the number of metadata shards.
	Buckets int `json:"buckets"`
	// Drives are the devices. One may be added at the end later; one that has gone from the list is kept as "down".
	Drives []DriveSpec `json:"drives"`

	// Settings, read at every start.

	// Computes is the number of compute processes, compute0 and on.
	Computes int `json:"computes"`
	// Mount is where the filesystem "default" is mounted by frontend0; "" is nowhere.
	Mount string `json:"mount"`
	// Binary is the absolute path of crake, started for each role.
	Binary string `json:"binary"`
	// APIListen is a further TCP address of the REST API, such as "127.0.0.1:14000"; "" is none.
	APIListen string `json:"api_listen,omitempty"`
	// Cores to pin processes to, round robin; empty means every core that mgmt may use.
	Cores []int `json:"cores,omitempty"`
	// Wire is how the processes of this server speak with each other; "" means shm.
	Wire route.Wire `json:"wire,omitempty"`
	// WireEncryption encrypts what they say by TCP; only with Wire "tcp", since the others do not leave the machine.
	WireEncryption bool `json:"wire_encryption,omitempty"`
	// LeaseMs is T in milliseconds; 0 means 5000.
	LeaseMs int `json:"lease_ms,omitempty"`
	// DriveArena, ComputeArena and FrontendArena are the buffer memory of a process of that role in bytes; 0 leaves it
	// to the role.
	DriveArena    int64 `json:"drive_arena_bytes,omitempty"`
	ComputeArena  int64 `json:"compute_arena_bytes,omitempty"`
	FrontendArena int64 `json:"frontend_arena_bytes,omitempty"`
	// ComputeMemory bounds the caches of a compute in bytes; 0 leaves it to the role.
	ComputeMemory int64 `json:"compute_memory_bytes,omitempty"`
	// FrontendDirty bounds the unsynced writes of a frontend in bytes; 0 leaves it to the role.
	FrontendDirty int64 `json:"frontend_dirty_bytes,omitempty"`
}

// DriveSpec is a device of the cluster.
type DriveSpec struct {
	// ID is from 1 on, never used twice in a cluster.
	ID uint32 `json:"id"`
	// Path is absolute: a preallocated file or a block device.
	Path string `json:"path"`
	// SizeBytes is its size.
	SizeBytes int64 `json:"size_bytes"`
}

// Limits of what a cluster file may ask for: one server.
const (
	MaxDrives   = 256
	MaxComputes = 64
	MinLeaseMs  = 500 // a heartbeat every 100 ms still gets five tries
	MaxLeaseMs  = 120_000
)

// Cluster gives the cluster id, or an error that says what is wrong with it.
func (f *ClusterFile) Cluster() (wire.ClusterID, error) {
	var id wire.ClusterID
	b, err := hex.DecodeString(f.ClusterID)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("cluster_id %q is not 32 hexadecimal digits", f.ClusterID)
	}
	copy(id[:], b)
	if id == (wire.ClusterID{}) {
		return id, errors.New("cluster_id is all zeros")
	}
	return id, nil
}

// Validate lists everything that is wrong with the file.
func (f *ClusterFile) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if f.Version != ClusterFileVersion {
		bad("version is %d, this software reads %d", f.Version, ClusterFileVersion)
	}
	if _, err := f.Cluster(); err != nil {
		errs = append(errs, err)
	}
	if f.DataStrips < 1 || f.ParityStrips < 1 || f.DataStrips+f.ParityStrips > wire.MaxStripes {
		bad("protection %d+%d: both parts must be at least 1 and their sum at most %d",
			f.DataStrips, f.ParityStrips, wire.MaxStripes)
	}
	if f.Buckets < 1 || f.Buckets > wire.MaxBuckets {
		bad("buckets is %d, want 1 to %d", f.Buckets, wire.MaxBuckets)
	}
	if n := len(f.Drives); n < f.DataStrips+f.ParityStrips || n > MaxDrives {
		bad("%d drives: protection %d+%d needs at least %d, and at most %d are allowed",
			n, f.DataStrips, f.ParityStrips, f.DataStrips+f.ParityStrips, MaxDrives)
	}
	if f.Computes < 1 || f.Computes > MaxComputes {
		bad("computes is %d, want 1 to %d", f.Computes, MaxComputes)
	}
	if f.Mount != "" && !filepath.IsAbs(f.Mount) {
		bad("mount %q is not an absolute path", f.Mount)
	}
	if !filepath.IsAbs(f.Binary) {
		bad("binary %q is not an absolute path", f.Binary)
	}
	if f.LeaseMs != 0 && (f.LeaseMs < MinLeaseMs || f.LeaseMs > MaxLeaseMs) {
		bad("lease_ms is %d, want %d to %d", f.LeaseMs, MinLeaseMs, MaxLeaseMs)
	}
	if err := f.validateWire(); err != nil {
		errs = append(errs, err)
	}
	for _, c := range f.Cores {
		if c < 0 || c > 4095 {
			bad("core %d does not exist", c)
		}
	}
	errs = append(errs, f.validateDrives()...)
	return errors.Join(errs...)
}

// validateWire says what is wrong with how processes shall speak.
func (f *ClusterFile) validateWire() error {
	if err := f.Wire.Validate(); err != nil {
		return fmt.Errorf("wire is %w", err)
	}
	if f.WireEncryption && f.Wire != route.WireTCP {
		return errors.New("wire_encryption is for wire tcp: unix sockets and shared memory do not leave the machine")
	}
	return nil
}

func (f *ClusterFile) validateDrives() []error {
	var errs []error
	ids, paths := map[uint32]bool{}, map[string]bool{}
	for _, d := range f.Drives {
		if d.ID == 0 || ids[d.ID] {
			errs = append(errs, fmt.Errorf("drive id %d is zero or used twice", d.ID))
		}
		if !filepath.IsAbs(d.Path) || paths[d.Path] {
			errs = append(errs, fmt.Errorf("drive %d: path %q is not absolute or used twice", d.ID, d.Path))
		}
		if d.SizeBytes <= 0 {
			errs = append(errs, fmt.Errorf("drive %d: size is %d bytes", d.ID, d.SizeBytes))
		}
		ids[d.ID], paths[d.Path] = true, true
	}
	return errs
}

// ReadClusterFile reads and checks dir's cluster file.
func ReadClusterFile(dir string) (*ClusterFile, error) {
	path := filepath.Join(dir, ClusterFileName)
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > maxClusterFileBytes {
		return nil, fmt.Errorf("%s: %d bytes, at most %d are read", path, st.Size(), maxClusterFileBytes)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var f ClusterFile
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := f.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %s", path, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return &f, nil
}

// WriteClusterFile checks f and writes it as dir's cluster file, whole or not at all, durably.
func WriteClusterFile(dir string, f *ClusterFile) error {
	if err := f.Validate(); err != nil {
		return err
	}
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, ClusterFileName)
	tmp, err := os.CreateTemp(dir, ClusterFileName+".tmp*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails when it was renamed: that is the good case
	_, err = tmp.Write(append(b, '\n'))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// RunDir is where sockets and the records of running processes lie.
func RunDir(dir string) string { return filepath.Join(dir, "run") }

// EtcdDir is where etcd keeps its data.
func EtcdDir(dir string) string { return filepath.Join(dir, "etcd") }

// LogDir is where the logs lie.
func LogDir(dir string) string { return filepath.Join(dir, "log") }

// LogPath is the log of the process of that name ("mgmt", "drive0", ...).
func LogPath(dir, name string) string { return filepath.Join(LogDir(dir), name+".log") }

// APISocket is the unix socket of the REST API.
func APISocket(dir string) string { return filepath.Join(RunDir(dir), "api.sock") }

// MgmtAddr is the address where the processes of this server find mgmt.
func MgmtAddr(dir string) string { return ProcAddr(dir, "mgmt") }

// ProcAddr is the address where the process of that name listens.
func ProcAddr(dir, name string) string { return "unix:" + filepath.Join(RunDir(dir), name+".sock") }

// CAPath is the file of the cluster's CA: a certificate, and the key by which mgmt issues the identities of processes.
func CAPath(dir string) string { return filepath.Join(dir, "mgmt", "ca.pem") }

// identitySuffix ends the names of identity files.
const identitySuffix = ".identity"

// IdentityPath is the file with which the present run of the process of that name proves who it is. It is there from shortly before the
// process starts until it has ended.
func IdentityPath(dir, name string) string { return filepath.Join(RunDir(dir), name+identitySuffix) }

// RemoveIdentities removes what a mgmt that died has left of them, when no process of the cluster runs any more.
func RemoveIdentities(dir string) error {
	left, err := filepath.Glob(filepath.Join(RunDir(dir), "*"+identitySuffix))
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// CheckDir says in one line why dir cannot hold a cluster, or nil: it must be absolute and short enough for the paths of
// unix sockets in it.
func CheckDir(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("%q is not an absolute path", dir)
	}
	// The longest name that mgmt makes there: etcd's listeners and frontends of four digits.
	longest := filepath.Join(RunDir(dir), "etcd-client.sock")
	if len(longest) > maxSocketPathBytes {
		return fmt.Errorf("%s is too long a path: unix sockets in it would have %d bytes, at most %d are possible; use a shorter one",
			dir, len(longest), maxSocketPathBytes)
	}
	return nil
}
