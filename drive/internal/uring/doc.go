// Package uring is a small io_uring: setting a ring up, the two rings that are shared with the kernel, and the tables of registered
// files and buffers. It knows nothing of devices, goroutines or waiting; blockio does.
//
// # The two rings
//
//	          we write                                kernel writes
//	SQ:  sqes[tail & mask], then tail  ---->  reads up to tail, then head      in io_uring_enter only
//	CQ:  reads up to tail, then head   <----  cqes[tail & mask], then tail     at any time
//
// Head and tail count for ever, modulo 2^32; tail - head is how many entries are in the ring, at most its size. Each index has one
// writer. What an entry holds must be visible before the tail that covers it, and an entry may be written over only once the head
// has passed it. So tails are stored with release and loaded with acquire order, and the same holds for heads. The operations of
// sync/atomic are sequentially consistent, which is stronger.
//
// # What the kernel holds pointers to, and until when
//
//   - The rings and the SQEs: until Close. The maps of a closed ring are unmapped, and the kernel keeps its own pages.
//   - SQEs and the iovec arrays that they point to: until Submit has consumed them (IORING_FEAT_SUBMIT_STABLE, which New demands).
//   - The data memory of an IO: until its CQE was reaped. Nothing else, not even closing the ring, says that the kernel has ended with it.
//   - Registered memory: its pages are pinned until it is unregistered and every IO that began on them has ended. The pages, not the
//     addresses: when memory gets other pages (punched, remapped), a registered IO still goes to the old ones.
//   - Registered files: until they are unregistered and every IO on them has ended.
//
// # When it goes wrong
//
// The kernel is trusted to write where it was told; but its answers are checked as bytes from elsewhere are: indexes that jump,
// entries beyond the ring and geometry that does not fit its maps are errors, never an access out of bounds (FuzzRing).
package uring
