package mgmt

import (
	"fmt"

	"github.com/crakefs/crake/mgmt/api"
)

// maxNamed bounds the drives that health and advice name one by one.
const maxNamed = 5

// driveHealth is what health is judged by as far as drives go.
type driveHealth struct {
	count              api.DriveCount
	domains, upDomains int         // failure domains; those with a drive that is up
	failed             []driveNote // for good
	problems           []driveNote // of drives that have not failed
}

// driveNote is a drive that people should look at.
type driveNote struct {
	id      uint32
	reason  string // why it failed
	problem string // what is wrong though it has not failed
}

// judge worsens health by what is wrong with drives.
func (h *driveHealth) judge(parity int, worsen func(state, format string, args ...any)) {
	if down := h.count.Total - h.count.Up - h.count.Failed; down > 0 {
		worsen(api.HealthDegraded, "%d of %d drives are down", down, h.count.Total)
	}
	for i, d := range h.failed {
		if i == maxNamed {
			worsen(api.HealthDegraded, "%d more drives have failed", len(h.failed)-i)
			break
		}
		worsen(api.HealthDegraded, "drive %d has failed: %s", d.id, d.reason)
	}
	for i, d := range h.problems {
		if i == maxNamed {
			worsen(api.HealthDegraded, "%d more drives have problems", len(h.problems)-i)
			break
		}
		worsen(api.HealthDegraded, "drive %d is %s", d.id, d.problem)
	}
	if h.upDomains <= parity {
		worsen(api.HealthUnavailable, "drives are up in %d of %d failure domains, and logs need %d: all writes wait", h.upDomains, h.domains, parity+1)
	}
}

// advice says what somebody should do about the drives.
func (h *driveHealth) advice(p *api.Protection) []string {
	out := []string{}
	for i, d := range h.failed {
		if i == maxNamed {
			out = append(out, "crake cluster drive lists all drives that have failed")
			break
		}
		out = append(out, fmt.Sprintf("drive %d has failed: repair it, then crake cluster drive activate %d; until then its data is rebuilt from other drives at every read",
			d.id, d.id))
	}
	for i, d := range h.problems {
		if i == maxNamed {
			break
		}
		out = append(out, fmt.Sprintf("look at drive %d: crake cluster drive %d", d.id, d.id))
	}
	// Logs have m+1 replicas in distinct failure domains, and an acknowledgement needs all of them.
	if need := 2*p.Parity + 1; h.domains < need {
		out = append(out, fmt.Sprintf("protection %d+%d keeps %d copies of every log, so with %d of %d failure domains down all writes would wait; %d failure domains avoid that",
			p.Data, p.Parity, p.Parity+1, p.Parity, h.domains, need))
	}
	return out
}
