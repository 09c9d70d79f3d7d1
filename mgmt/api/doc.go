// Package api is how people and tools talk to mgmt: the cluster file that forms a cluster, the types of the REST API
// and a client of it. JSON keys never change meaning; new ones may come.
//
// Requests, all below /api/v1 on unix:DIR/run/api.sock and, if configured, on a TCP address:
//
//	GET    /ping                   -> {}            mgmt answers
//	GET    /status                 -> Status
//	GET    /processes              -> []Process
//	GET    /drives                 -> []Drive
//	GET    /buckets?detail=true    -> []Bucket
//	GET    /pgs                    -> []PG
//	GET    /filesystems            -> []Filesystem
//	POST   /filesystems            FSRequest -> Filesystem
//	DELETE /filesystems/NAME       -> {}            409 when it is mounted or not empty
//	GET    /mounts                 -> []Mount
//	POST   /mounts                 MountRequest -> Mount   when it is mounted
//	DELETE /mounts                 MountRequest -> {}      when it is unmounted
//	GET    /events?limit=&after=&severity=&type=  -> []Event
//	POST   /stop                   StopRequest -> StopResponse  the whole cluster, in order; 409 when a mount is in use
//
// Every failure is an Error {error, hint} with a 4xx or 5xx status.
package api
