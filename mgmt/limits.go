package mgmt

import "time"

// Limits of mgmt, each with its reason. Those of the leader, the store, events and the process runtime are in their packages.
const (
	// defaultLeaseMs is T: twice the time that a loaded machine may reasonably keep a process from running, and short
	// enough that a hung compute is a pause and no outage.
	defaultLeaseMs = 5000
	// memoryLimit is the soft limit of the worker's heap: etcd's and our garbage is collected before it grows past it.
	memoryLimit = 96 << 20
	gcPercent   = 50
	// watchWait bounds how long a watch for a newer map sits here; the asker asks again.
	watchWait = 30 * time.Second
	// evictWait bounds the wait for an evicted session to be gone; a lease is the most it takes.
	evictWait = 150 * time.Second
	// openingPatience is for how long a drive may open its device before people hear of it: a healthy one with millions of strips takes
	// a few seconds.
	openingPatience = 10 * time.Second
	// Graces before SIGKILL in an orderly stop: a frontend has to write back what is dirty, a compute to flush its
	// databases, a drive to write a checkpoint.
	graceFrontend = 60 * time.Second
	graceCompute  = 20 * time.Second
	graceDrive    = 20 * time.Second
	// mountWait bounds the wait of an API caller for a new mount, rootWait for a new filesystem.
	mountWait = 60 * time.Second
	rootWait  = 30 * time.Second
	// askWait bounds one question to a compute.
	askWait = 5 * time.Second
	// reconcileEvery is how often wishes and what runs are compared when nothing else asks for it.
	reconcileEvery = 500 * time.Millisecond
	// startupGrace is how long the cluster counts as starting when not everything has come up.
	startupGrace = 15 * time.Second
	// maxMounts bounds the frontends of this server.
	maxMounts = 64
	// maxUsers bounds how many users of a busy mount point are named.
	maxUsers = 5

	// Bounds of the REST API: bodies are a name or a path; answers are made in memory, so few at a time.
	maxBodyBytes    = 64 << 10
	maxHeaderBytes  = 16 << 10
	maxAPIConns     = 64
	apiReadTimeout  = 10 * time.Second
	apiIdleTimeout  = 60 * time.Second
	apiWriteTimeout = 3 * time.Minute // above the longest wait of a caller
	// statAtOnce bounds the questions to computes at one time.
	statAtOnce = 16
)
