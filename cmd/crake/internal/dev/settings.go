package dev

import (
	"errors"
	"reflect"

	"github.com/crakefs/crake/mgmt/api"
	"github.com/crakefs/crake/wire/route"
)

// settings writes what was said of the settings that may differ from one start to the next into the cluster file.
func (c *Config) settings(f *api.ClusterFile) {
	if c.Computes != 0 {
		f.Computes = c.Computes
	}
	if c.APIListen != "" {
		f.APIListen = c.APIListen
	}
	if c.Wire != "" {
		f.Wire = c.Wire
	}
	if c.Encrypt != nil {
		f.WireEncryption = *c.Encrypt
	}
	for _, a := range []struct {
		said int64
		is   *int64
	}{{c.Arenas.Drive, &f.DriveArena}, {c.Arenas.Compute, &f.ComputeArena}, {c.Arenas.Frontend, &f.FrontendArena}} {
		if a.said != 0 {
			*a.is = a.said
		}
	}
}

// checkSettings says what is wrong with the settings that a cluster would have: those of f, and what was said.
func (c *Config) checkSettings(f api.ClusterFile) error {
	c.settings(&f)
	if err := checkComputes(f.Computes); err != nil {
		return err
	}
	if f.WireEncryption && f.Wire != route.WireTCP {
		return errors.New("--wire-encryption is for --wire tcp: unix sockets and shared memory do not leave the machine; " +
			"add --wire tcp, or --wire-encryption=false")
	}
	return nil
}

// changes says whether a running cluster would have to be stopped for what was said.
func (c *Config) changes(f api.ClusterFile) bool {
	now := f
	c.settings(&now)
	return !reflect.DeepEqual(f, now)
}
