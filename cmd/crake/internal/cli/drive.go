package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/crakefs/crake/cmd/crake/internal/size"
	"github.com/crakefs/crake/drive"
)

// inspectCmd makes crake drive inspect.
func (a *app) inspectCmd() *cobra.Command {
	var format formatFlag
	c := &cobra.Command{
		Use: "inspect DEVICE", Short: "show what lies on a drive's device, without changing it", Args: args("DEVICE"),
		Long: strings.TrimSpace(`
Shows what lies on a file or block device that is a drive: superblock, checkpoints, journal, space, what each bucket has, open
segments. Nothing is written. A device that a running drive has open is refused: stop that first.`),
		Example: "  crake drive inspect /dev/nvme0n1\n  crake drive inspect DIR/drives/drive0 -f json | jq .space",
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := drive.Inspect(cmd.Context(), args[0])
			if in == nil {
				return err
			}
			if format.is(formatJSON) {
				return errors.Join(printJSON(a.out, in), err)
			}
			return errors.Join(printInspection(a.out, in), err)
		},
	}
	format.register(c, formatTable, formatJSON)
	return c
}

// checkCmd makes crake drive check.
func (a *app) checkCmd() *cobra.Command {
	var format formatFlag
	var quick bool
	c := &cobra.Command{
		Use: "check DEVICE", Short: "check that a drive's device is consistent, without changing it", Args: args("DEVICE"),
		Long: strings.TrimSpace(`
Checks a file or block device that is a drive: both superblocks, checkpoints, the chain of the journal, that no two strips share a
block, and the checksums of all data. It also tells what opening the drive would do after a crash. Nothing is written. A device that
a running drive has open is refused: stop that first. The exit status is 1 when there is damage.`),
		Example: "  crake drive check /dev/nvme0n1\n  crake drive check --quick DIR/drives/drive0\n  crake drive check DEVICE -f json | jq '.findings[] | select(.severity == \"damage\")'",
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg := drive.CheckConfig{Path: args[0], Quick: quick}
			if isTerminal(a.err) {
				cfg.Progress = func(done, total uint64, elapsed time.Duration) {
					fmt.Fprintf(a.err, "\r\x1b[K%s", progressText(done, total, elapsed))
				}
			}
			return a.check(cmd.Context(), cfg, &format)
		},
	}
	c.Flags().BoolVar(&quick, "quick", false, "leave out the data, which takes nearly all of the time")
	format.register(c, formatTable, formatJSON)
	return c
}

func (a *app) check(ctx context.Context, cfg drive.CheckConfig, format *formatFlag) error {
	r, err := drive.Check(ctx, cfg)
	if cfg.Progress != nil {
		fmt.Fprint(a.err, "\r\x1b[K")
	}
	if r == nil {
		return err
	}
	if format.is(formatJSON) {
		err = errors.Join(printJSON(a.out, r), err)
	} else {
		err = errors.Join(printCheck(a.out, r), err)
	}
	if err == nil && !r.Sound {
		return fmt.Errorf("%s is damaged: %s", cfg.Path, plural(r.Damage, "finding"))
	}
	return err
}

// isTerminal says that people watch what is written to w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// progressText says how far the reading of data is.
func progressText(done, total uint64, elapsed time.Duration) string {
	rate := float64(done) / max(elapsed.Seconds(), 1e-3)
	text := fmt.Sprintf("read %s of %s, %s/s", bytesText(done), bytesText(total), bytesText(uint64(rate)))
	if done > 0 && done < total {
		left := time.Duration(float64(total-done) / max(rate, 1) * float64(time.Second))
		text += fmt.Sprintf(", %v left", left.Round(time.Second))
	}
	return text
}

func bytesText(n uint64) string { return size.Format(int64(n)) }

// facts prints lines of a name and what there is to say, aligned.
type facts struct{ w *tabwriter.Writer }

func newFacts(w io.Writer) facts { return facts{tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)} }

func (f facts) add(name, format string, args ...any) {
	fmt.Fprintf(f.w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
}

// maxListed bounds the open segments and findings in a listing for people; JSON has them all.
const maxListed = 50

func printInspection(w io.Writer, in *drive.Inspection) error {
	kind := "file"
	if in.Block {
		kind = "block device"
	}
	sb := &in.Superblock
	f := newFacts(w)
	f.add("device", "%s, %s of %s", in.Path, kind, bytesText(uint64(in.DeviceBytes)))
	f.add("drive", "%d of cluster %s", sb.Drive, sb.Cluster)
	f.add("formatted", "%s, layout version %d, format id %s", timeText(sb.Formatted), sb.Version, sb.FormatID)
	f.add("layout", "journal %s at %d, checkpoints %s at %d and %d, data %s at %d", bytesText(uint64(sb.JournalBytes)), sb.JournalOffset,
		bytesText(uint64(sb.CheckpointBytes)), sb.CheckpointOff[0], sb.CheckpointOff[1], bytesText(uint64(sb.DataBytes)), sb.DataOffset)
	if len(sb.DamagedCopies) > 0 {
		f.add("superblock", "DAMAGED at %v; opening writes it again", sb.DamagedCopies)
	}
	for i, c := range in.Checkpoints {
		f.add(fmt.Sprintf("checkpoint %c", 'A'+i), "%s", checkpointText(c))
	}
	if in.Error != "" {
		return f.w.Flush() // the error says the rest
	}
	j, s := &in.Journal, &in.Space
	f.add("journal", "%s", journalText(j, sb.JournalBytes))
	f.add("space", "%s used, %s free of %s; %s of that is kept from file data", bytesText(s.UsedBytes), bytesText(s.FreeBytes), bytesText(s.DataBytes),
		bytesText(s.ReserveBytes))
	f.add("free runs", "%d, the largest %s; %s in runs below 128KiB", s.FreeRuns, bytesText(s.LargestFreeRun), bytesText(s.FreeInShortRuns))
	f.add("content", "%s, %s; %d not in one piece", plural(s.Strips, "strip"), plural(s.Segments, "segment"), s.InSeveralRuns)
	if err := f.w.Flush(); err != nil {
		return err
	}
	return errors.Join(printBuckets(w, in.Buckets), printOpenSegments(w, in.OpenSegments))
}

func checkpointText(c drive.CheckpointInfo) string {
	switch {
	case c.Error != "":
		return "no sound one: " + c.Error
	case c.Seq == 0:
		return c.State
	}
	return fmt.Sprintf("%s: number %d of %s, %d records in %d pages (%s), journal from batch %d on", c.State, c.Seq, timeText(c.Written), c.Records, c.Pages,
		bytesText(c.Bytes), c.JournalSeq)
}

func journalText(j *drive.JournalInfo, ringBytes int64) string {
	if j.Batches == 0 {
		return fmt.Sprintf("nothing to replay%s", tornText(j))
	}
	var kinds []string
	for _, k := range []string{"put", "alloc", "seal", "delete", "fence"} {
		if n := j.Records[k]; n > 0 {
			kinds = append(kinds, fmt.Sprintf("%d %s", n, k))
		}
	}
	return fmt.Sprintf("%d batches to replay (%d to %d, %s of %s): %s; %s perhaps under way%s", j.Batches, j.FirstSeq, j.NextSeq-1,
		bytesText(uint64(j.UsedBytes)), bytesText(uint64(ringBytes)), strings.Join(kinds, ", "), plural(j.UnderWay, "put"), tornText(j))
}

func tornText(j *drive.JournalInfo) string {
	if j.Torn {
		return "; the tail is torn"
	}
	return ""
}

func timeText(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

func printBuckets(w io.Writer, buckets []drive.BucketInfo) error {
	type row struct {
		b drive.BucketInfo
		c drive.ClassInfo
	}
	var rows []row
	for _, b := range buckets {
		if len(b.Classes) == 0 {
			rows = append(rows, row{b: b})
		}
		for _, c := range b.Classes {
			rows = append(rows, row{b, c})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	return printList(w, formatTable, rows, []column[row]{
		{"bucket", func(r row) string { return fmt.Sprint(r.b.Bucket) }},
		{"epoch", func(r row) string { return fmt.Sprint(r.b.Epoch) }},
		{"class", func(r row) string { return r.c.Class }},
		{"strips", func(r row) string { return fmt.Sprint(r.c.Strips) }},
		{"segments", func(r row) string { return fmt.Sprint(r.c.Segments) }},
		{"data", func(r row) string { return bytesText(r.c.Bytes) }},
	})
}

func printOpenSegments(w io.Writer, segments []drive.SegmentInfo) error {
	if len(segments) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	err := printList(w, formatTable, segments[:min(maxListed, len(segments))], []column[drive.SegmentInfo]{
		{"open segment", func(s drive.SegmentInfo) string { return s.ID }},
		{"bucket", func(s drive.SegmentInfo) string { return fmt.Sprint(s.Bucket) }},
		{"class", func(s drive.SegmentInfo) string { return s.Class }},
		{"data", func(s drive.SegmentInfo) string { return bytesText(s.Bytes) }},
		{"allocated", func(s drive.SegmentInfo) string { return bytesText(s.AllocatedBytes) }},
		{"error", func(s drive.SegmentInfo) string { return s.Error }},
	})
	if more := len(segments) - maxListed; more > 0 {
		fmt.Fprintf(w, "and %d more; -f json lists all\n", more)
	}
	return err
}

func printCheck(w io.Writer, r *drive.CheckReport) error {
	f := newFacts(w)
	f.add("device", "%s, drive %d of cluster %s", r.Path, r.Drive, r.Cluster)
	f.add("content", "%s, %s, %s of data", plural(r.Strips, "strip"), plural(r.Segments, "segment"), bytesText(r.DataBytes))
	if r.Quick {
		f.add("read", "no data (--quick)")
	} else {
		f.add("read", "%s in %.1f s, %s/s", bytesText(r.ReadBytes), r.Seconds, bytesText(uint64(r.BytesPerSec)))
	}
	f.add("opening", "%s", openingText(r))
	result := "sound"
	if !r.Sound {
		result = "DAMAGED: " + plural(r.Damage, "finding")
	}
	f.add("result", "%s", result)
	if err := f.w.Flush(); err != nil || len(r.Findings) == 0 {
		return err
	}
	fmt.Fprintln(w)
	err := printList(w, formatTable, r.Findings[:min(maxListed, len(r.Findings))], []column[drive.Finding]{
		{"severity", func(f drive.Finding) string { return f.Severity }},
		{"part", func(f drive.Finding) string { return f.Part }},
		{"at byte", func(f drive.Finding) string { return placeText(f.Offset) }},
		{"finding", func(f drive.Finding) string { return strings.TrimPrefix(f.ID+": "+f.Text, ": ") }},
	})
	if more := r.Damage + r.Notes - maxListed; more > 0 {
		fmt.Fprintf(w, "and %d more; -f json lists up to 1000\n", more)
	}
	return err
}

func placeText(off int64) string {
	if off < 0 {
		return ""
	}
	return fmt.Sprint(off)
}

func openingText(r *drive.CheckReport) string {
	var parts []string
	for _, p := range []struct {
		n           int
		does, after string
		what        string
	}{
		{r.ReplaysBatches, "replays ", " of the journal", "write"}, {r.DropsPuts, "drops ", " under way", "put"},
		{r.ErasesBlocks, "erases ", " beyond the ends of segments", "block"}, {r.RepairsSuperblocks, "repairs ", "", "superblock"},
	} {
		if p.n > 0 {
			parts = append(parts, p.does+plural(p.n, p.what)+p.after)
		}
	}
	if len(parts) == 0 {
		return "has nothing to replay"
	}
	return strings.Join(parts, ", ")
}
