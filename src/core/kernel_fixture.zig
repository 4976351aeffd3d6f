//! The kernel as the core's tests see it: libc, with faults where a test asks for them.
//!
//! Only test builds have this file: there sys.zig and pages.zig call libc through it, and what
//! ships calls libc itself. A thread that has armed itself with a `Plan` meets the plan's faults;
//! all others, a test's clients among them, meet none. Every fault is one that a kernel can show.
//! In particular an edge-triggered reactor that was told "no more" too early is told of the socket
//! again, as it would be when more comes; a socket that is in no reactor is never told that. The
//! table of watched sockets has a lock of its own; GIL: not needed.

const std = @import("std");
const builtin = @import("builtin");
const c = std.c;

const is_linux = builtin.os.tag == .linux;

/// What can fail. The start's calls are those that only `Server.create` makes.
pub const Call = enum {
    recv,
    send,
    send_file,
    accept,
    poll,
    watch,
    open,
    /// Of a file to serve.
    find,
    stat,
    write_file,
    read_file,
    start,
    allocate,
    map_pages,
};

pub const Fault = enum {
    interrupted,
    /// Fewer bytes than there are, or than there is room for.
    short,
    would_block,
    reset,
    broken_pipe,
    timed_out,
    aborted,
    no_memory,
    no_buffers,
    process_descriptors,
    system_descriptors,
    no_space,
    quota,
    file_too_big,
    io_error,

    fn errno(self: Fault) c.E {
        return switch (self) {
            .interrupted => .INTR,
            .short, .would_block => .AGAIN,
            .reset => .CONNRESET,
            .broken_pipe => .PIPE,
            .timed_out => .TIMEDOUT,
            .aborted => .CONNABORTED,
            .no_memory => .NOMEM,
            .no_buffers => .NOBUFS,
            .process_descriptors => .MFILE,
            .system_descriptors => .NFILE,
            .no_space => .NOSPC,
            .quota => .DQUOT,
            .file_too_big => .FBIG,
            .io_error => .IO,
        };
    }
};

/// What each call may meet; memory just is not there.
fn faults_of(call: Call) []const Fault {
    return switch (call) {
        .recv => &.{ .interrupted, .short, .would_block, .reset, .timed_out, .no_memory },
        .send => &.{ .interrupted, .short, .would_block, .reset, .broken_pipe, .no_buffers },
        .send_file => &.{ .interrupted, .short, .would_block, .reset, .broken_pipe, .io_error },
        .accept => &.{
            .interrupted,
            .would_block,
            .aborted,
            .process_descriptors,
            .system_descriptors,
            .no_buffers,
            .no_memory,
        },
        .poll => &.{ .interrupted, .no_memory },
        .watch => &.{ .no_memory, .no_space },
        .open => &.{
            .process_descriptors,
            .system_descriptors,
            .no_space,
            .quota,
            .io_error,
            .no_memory,
        },
        .find => &.{ .interrupted, .process_descriptors, .system_descriptors, .io_error },
        .stat => &.{ .no_memory, .io_error },
        .write_file => &.{ .interrupted, .short, .no_space, .quota, .file_too_big, .io_error },
        .read_file => &.{ .interrupted, .short, .io_error },
        .start => &.{ .process_descriptors, .system_descriptors, .no_memory },
        .allocate, .map_pages => &.{.no_memory},
    };
}

/// Which calls fail, and how. Any thread may be armed with it.
pub const Plan = struct {
    seed: u64 = 0,
    /// Of 1024 calls of a kind, how many fail.
    rates: std.EnumArray(Call, u16) = .initFill(0),
    /// The one call that fails, counted over all of them, instead of any by `rates`.
    only: ?u64 = null,
    calls: std.atomic.Value(u64) = .init(0),
    injected: std.EnumArray(Call, std.atomic.Value(u32)) = .initFill(.init(0)),

    pub fn total_injected(self: *const Plan) u32 {
        var total: u32 = 0;
        for (&self.injected.values) |*count| total += count.load(.monotonic);
        return total;
    }

    fn decide(self: *Plan, call: Call) ?Fault {
        const number = self.calls.fetchAdd(1, .monotonic);
        const hash = std.hash.int(self.seed ^ std.hash.int(number));
        const choices = faults_of(call);
        const choice = if (self.only) |only| blk: {
            if (number != only) return null;
            // Each seed has another fault of the call, so that few seeds have them all.
            break :blk (self.seed +% number) % choices.len;
        } else blk: {
            if (hash % 1024 >= self.rates.get(call)) return null;
            break :blk (hash >> 32) % choices.len;
        };
        _ = self.injected.getPtr(call).fetchAdd(1, .monotonic);
        return choices[@intCast(choice)];
    }
};

threadlocal var armed: ?*Plan = null;

/// From here on the calling thread meets the plan's faults; with null it meets none.
pub fn arm(plan: ?*Plan) void {
    armed = plan;
}

fn decide(call: Call) ?Fault {
    const plan = armed orelse return null;
    return plan.decide(call);
}

fn fail(fault: Fault) c_int {
    c._errno().* = @intFromEnum(fault.errno());
    return -1;
}

/// A part of `length`, at least one byte, of a size that differs from call to call.
fn part_of(length: usize) usize {
    const plan = armed orelse return length;
    const hash = std.hash.int(plan.seed +% plan.calls.load(.monotonic));
    return 1 + @as(usize, @intCast(hash % @max(1, length)));
}

// ---- The sockets in a reactor ------------------------------------------------------------------

const Watch = struct { poll_fd: c.fd_t, events: u32, token: u64 };

var watches: [4096]?Watch = @splat(null);
var watches_mutex: std.Thread.Mutex = .{};

fn is_watched(fd: c.fd_t) bool {
    if (fd < 0 or fd >= watches.len) return false;
    watches_mutex.lock();
    defer watches_mutex.unlock();
    return watches[@intCast(fd)] != null;
}

/// Has the reactor told of the socket again.
fn raise(fd: c.fd_t) void {
    if (!is_linux) return; // nothing is watched by epoll there
    if (fd < 0 or fd >= watches.len) return;
    watches_mutex.lock();
    defer watches_mutex.unlock();
    const watch = watches[@intCast(fd)] orelse return;
    const modify = std.os.linux.EPOLL.CTL_MOD;
    var event: c.epoll_event = .{ .events = watch.events, .data = .{ .u64 = watch.token } };
    _ = c.epoll_ctl(watch.poll_fd, modify, fd, &event);
}

pub fn epoll_ctl(poll_fd: c.fd_t, operation: c_uint, fd: c.fd_t, event: ?*c.epoll_event) c_int {
    const linux = std.os.linux;
    const is_add = operation == linux.EPOLL.CTL_ADD;
    if (is_add) if (decide(.watch)) |fault| return fail(fault);
    watches_mutex.lock();
    defer watches_mutex.unlock();
    const result = c.epoll_ctl(poll_fd, operation, fd, event);
    if (fd >= 0 and fd < watches.len) watches[@intCast(fd)] = if (is_add and result == 0) .{
        .poll_fd = poll_fd,
        .events = event.?.events,
        .token = event.?.data.u64,
    } else null;
    return result;
}

// ---- Calls -------------------------------------------------------------------------------------

pub fn recv(fd: c.fd_t, buffer: ?*anyopaque, length: usize, flags: c_int) isize {
    const fault = decide(.recv) orelse return c.recv(fd, buffer, length, flags);
    switch (fault) {
        .short, .would_block => {
            if (!is_watched(fd)) return c.recv(fd, buffer, length, flags);
            defer raise(fd);
            if (fault == .would_block) return fail(fault);
            return c.recv(fd, buffer, part_of(length), flags);
        },
        else => return fail(fault),
    }
}

pub fn send(fd: c.fd_t, bytes: *const anyopaque, length: usize, flags: u32) isize {
    const fault = decide(.send) orelse return c.send(fd, bytes, length, flags);
    switch (fault) {
        .short => return c.send(fd, bytes, part_of(length), flags),
        .would_block => return refuse_send(fd),
        else => return fail(fault),
    }
}

pub fn sendmsg(fd: c.fd_t, message: *const c.msghdr_const, flags: u32) isize {
    const fault = decide(.send) orelse return c.sendmsg(fd, message, flags);
    switch (fault) {
        .short => {
            var cut = message.*;
            var first = message.iov[0];
            first.len = part_of(first.len);
            cut.iov = @ptrCast(&first);
            cut.iovlen = 1;
            return c.sendmsg(fd, &cut, flags);
        },
        .would_block => return refuse_send(fd),
        else => return fail(fault),
    }
}

/// Linux's: macOS has another order of arguments.
pub fn sendfile(fd: c.fd_t, file: c.fd_t, offset: ?*c.off_t, length: usize) isize {
    const fault = decide(.send_file) orelse return c.sendfile(fd, file, offset, length);
    switch (fault) {
        .short => return c.sendfile(fd, file, offset, part_of(length)),
        .would_block => return refuse_send(fd),
        else => return fail(fault),
    }
}

/// Only for a socket whose reactor will say that there is room again.
fn refuse_send(fd: c.fd_t) isize {
    if (!is_watched(fd)) return fail(.interrupted);
    raise(fd);
    return fail(.would_block);
}

pub fn accept4(
    listener: c.fd_t,
    address: ?*c.sockaddr,
    length: ?*c.socklen_t,
    flags: c_uint,
) c_int {
    if (decide(.accept)) |fault| return fail_accept(listener, fault);
    return c.accept4(listener, address, length, flags);
}

pub fn accept(listener: c.fd_t, address: ?*c.sockaddr, length: ?*c.socklen_t) c_int {
    if (decide(.accept)) |fault| return fail_accept(listener, fault);
    return c.accept(listener, address, length);
}

fn fail_accept(listener: c.fd_t, fault: Fault) c_int {
    switch (fault) {
        .would_block => {
            if (!is_watched(listener)) return fail(.interrupted);
            raise(listener);
        },
        .aborted => {
            // The connection is gone then.
            const fd = c.accept(listener, null, null);
            if (fd < 0) return fd;
            _ = c.close(fd);
        },
        else => {},
    }
    return fail(fault);
}

pub fn poll(entries: [*]c.pollfd, count: c.nfds_t, timeout: c_int) c_int {
    if (decide(.poll)) |fault| return fail(fault);
    return c.poll(entries, count, timeout);
}

pub fn open(path: [*:0]const u8, options: c.O, mode: c_uint) c_int {
    if (decide(.open)) |fault| return fail(fault);
    return c.open(path, options, mode);
}

pub fn openat(directory: c.fd_t, path: [*:0]const u8, options: c.O) c_int {
    if (decide(.find)) |fault| return fail(fault);
    return c.openat(directory, path, options);
}

/// openat2(2), which libc does not have.
pub fn syscall4(number: std.os.linux.SYS, a: usize, b: usize, d: usize, e: usize) usize {
    if (decide(.find)) |fault| return 0 -% @as(usize, @intFromEnum(fault.errno()));
    return std.os.linux.syscall4(number, a, b, d, e);
}

pub fn fstat(fd: c.fd_t, stat: *c.Stat) c_int {
    if (decide(.stat)) |fault| return fail(fault);
    return c.fstat(fd, stat);
}

pub fn pwrite(fd: c.fd_t, bytes: [*]const u8, length: usize, offset: c.off_t) isize {
    const fault = decide(.write_file) orelse return c.pwrite(fd, bytes, length, offset);
    if (fault == .short) return c.pwrite(fd, bytes, part_of(length), offset);
    return fail(fault);
}

pub fn pread(fd: c.fd_t, buffer: [*]u8, length: usize, offset: c.off_t) isize {
    const fault = decide(.read_file) orelse return c.pread(fd, buffer, length, offset);
    if (fault == .short) return c.pread(fd, buffer, part_of(length), offset);
    return fail(fault);
}

pub fn socketpair(domain: c_uint, kind: c_uint, protocol: c_uint, pair: *[2]c.fd_t) c_int {
    if (decide(.start)) |fault| return fail(fault);
    return c.socketpair(domain, kind, protocol, pair);
}

pub fn epoll_create1(flags: c_uint) c_int {
    if (decide(.start)) |fault| return fail(fault);
    return c.epoll_create1(flags);
}

pub fn eventfd(value: c_uint, flags: c_uint) c_int {
    if (decide(.start)) |fault| return fail(fault);
    return c.eventfd(value, flags);
}

// ---- Memory ------------------------------------------------------------------------------------

/// Bytes that `pages` has mapped and not given back.
pub var mapped_bytes: std.atomic.Value(usize) = .init(0);

pub fn map_pages(bytes: usize, alignment: std.mem.Alignment) ?[*]u8 {
    if (decide(.map_pages) != null) return null;
    const memory = std.heap.page_allocator.rawAlloc(bytes, alignment, @returnAddress());
    if (memory != null) _ = mapped_bytes.fetchAdd(bytes, .monotonic);
    return memory;
}

pub fn unmap_pages(memory: []u8, alignment: std.mem.Alignment) void {
    _ = mapped_bytes.fetchSub(memory.len, .monotonic);
    std.heap.page_allocator.rawFree(memory, alignment, @returnAddress());
}

/// The tests' allocator, which finds leaks, where a plan may say that there is no memory.
pub const allocator: std.mem.Allocator = .{ .ptr = undefined, .vtable = &.{
    .alloc = alloc,
    .resize = resize,
    .remap = remap,
    .free = free,
} };

const child = std.testing.allocator;

fn alloc(_: *anyopaque, bytes: usize, alignment: std.mem.Alignment, caller: usize) ?[*]u8 {
    if (decide(.allocate) != null) return null;
    return child.rawAlloc(bytes, alignment, caller);
}

fn resize(
    _: *anyopaque,
    memory: []u8,
    alignment: std.mem.Alignment,
    bytes: usize,
    caller: usize,
) bool {
    // Growing in place may always fail; shrinking may not.
    if (bytes > memory.len and decide(.allocate) != null) return false;
    return child.rawResize(memory, alignment, bytes, caller);
}

fn remap(
    _: *anyopaque,
    memory: []u8,
    alignment: std.mem.Alignment,
    bytes: usize,
    caller: usize,
) ?[*]u8 {
    if (bytes > memory.len and decide(.allocate) != null) return null;
    return child.rawRemap(memory, alignment, bytes, caller);
}

fn free(_: *anyopaque, memory: []u8, alignment: std.mem.Alignment, caller: usize) void {
    child.rawFree(memory, alignment, caller);
}
