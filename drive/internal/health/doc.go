// Package health judges a device by what its IOs do: how long they take, which fail, which do not return. Its Monitor has
// no goroutine and no clock of its own; the store tells it of every IO, and somebody calls Tick. What it finds travels to
// mgmt in the heartbeats (wire.DriveStatResp): mgmt compares drives with their peers and fails those that say Fault.
//
// # What counts
//
//   - The device is gone (ENODEV, ENXIO, a file that has become shorter, ...): a fault at once. Nothing will come of it.
//   - A write or a flush fails: devices put bad blocks aside by themselves when they are written, so this is grave. After a
//     failed flush or journal write the store stops and the process starts anew, which mgmt counts (wire.DriveTroubleReq);
//     what the store survives is counted here.
//   - A read fails: a block that has gone bad, which its peers make up for. Many of them are a device on its way out.
//   - An IO does not return: a fault when it has been under way for longer than the kernel itself waits for a device.
//   - A device that is full (thin), or a request that is wrong, says nothing about the device.
//
// Errors are counted by occurrence, not by number: when a controller is reset, everything under way fails at once, and a
// strip that is read again and again fails again and again, though one block is bad. So at most one a second counts, and
// one that says the same as one of the last (its text holds the offset) does not.
package health
