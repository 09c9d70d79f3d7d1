// Package route keeps the cluster map of a process fresh, finds who owns what, and is the one place for retries.
//
//  1. Router.Run keeps one question at mgmt: "what map is newer than mine?" (maps.go). Each new map is indexed, put in place, told to those
//     who wait for it and to OnMap. A frame with a newer generation, a moved bucket or a lost connection kicks the question: it is
//     put anew at once.
//  2. Router.Bucket (ask.go) looks up owner and epoch, takes a connection from the pool and asks. A retryable error makes it wait, for the next
//     map or 2 ms doubling to 250 ms, and send the same request again, as long as ctx lives. Nobody above needs to retry, and mutating
//     requests carry an OpID so that this is safe.
//  3. Who speaks how with whom is decided here alone (place.go, listen.go): a process listens at several addresses by Router.Listen, and
//     Router.options gives the connections that it makes and those that it takes the same terms. Of a process of its own server (ProcInfo.Server)
//     a router dials the unix address, or by Config.Wire the TCP one; of others the TCP one only, since a unix path of theirs may exist here by
//     chance. Data passes by shared memory where the map, and so mgmt, says that the peer is on this server (Router.SameServer).
//  4. Router.Drive asks once: its callers have other replicas or strips to turn to. A process that does not take a connection
//     counts as away for 200 ms, or until a map tells of a new run of it.
//
//  4. Router.Admit (admit.go) lets only those connect that the map names, by the certificate of their newest run. A new map ends the connections of
//     others.
//
// Goroutines: Run's caller's, and one for the question under way, which Run waits for. OnMap is called in Run's or SetMap's.
// Lock order: setMu (held while OnMap runs, so OnMap must not call SetMap), then mu.
//
// How it fails, and the test for each, stands in the documentation of package wire.
package route
