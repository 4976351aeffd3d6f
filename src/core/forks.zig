//! Forks of the process by the application: which descriptors a child must close, and what must
//! not run there.
//!
//! The kernel gives and takes a descriptor in one system call, and its slot is written after that.
//! A fork in between would leave a client's socket open in the child, unknown to it, or have the
//! child close a number that the application's own file has by then. So both steps are done under
//! one lock, which a fork takes as well. It is held for two or three system calls that never block,
//! by threads that do not hold the GIL and do not wait for it: the thread that forks may.

const std = @import("std");
const sys = @import("sys.zig");

var mutex: std.Thread.Mutex = .{};
/// Set in the child while it has but one thread.
var forked: bool = false;

/// Before a descriptor is opened or closed together with the slot that names it. Not with the GIL.
pub fn lock() void {
    mutex.lock();
}

pub fn unlock() void {
    mutex.unlock();
}

/// Before a fork. False when the caller has to let go of the GIL and try again.
pub fn try_begin() bool {
    return mutex.tryLock();
}

pub fn end_in_parent() void {
    mutex.unlock();
}

/// False in a child of the child, whose descriptors are all its own.
pub fn end_in_child() bool {
    mutex = .{};
    defer forked = true;
    return !forked;
}

/// Whether this process was forked from the server's. Nothing of the server may touch a descriptor
/// here: the numbers may be those of the application's files.
pub fn is_child() bool {
    return forked;
}

/// Closes what is open. What is done with it from then on fails, and touches no other file.
pub fn close_for_good(fd: *sys.Fd) void {
    if (fd.* != sys.no_fd) sys.close(fd.*);
    fd.* = sys.no_fd;
}

const testing = std.testing;

test "a fork waits until a descriptor and its slot agree" {
    var fd: sys.Fd = sys.no_fd;
    lock();
    const pair = try sys.socket_pair();
    defer for (pair) |one| sys.close(one);
    try testing.expect(!try_begin());
    fd = pair[0];
    unlock();
    try testing.expect(try_begin());
    try testing.expectEqual(pair[0], fd);
    end_in_parent();
    try testing.expect(!is_child());
}
