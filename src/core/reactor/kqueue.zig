//! The reactor on macOS, and on Linux over libkqueue for its tests. Owner: the server; thread rules
//! in reactor.zig.
//!
//! A socket has two registrations, one to read and one to write, both with EV_CLEAR, and so one
//! `poll` may report the same token twice. macOS reports room to write anew with every
//! acknowledgment that makes some: an event more than epoll gives, never one less.

const std = @import("std");
const builtin = @import("builtin");
const sys = @import("../sys.zig");
const reactor = @import("../reactor.zig");

/// `struct kevent` as macOS and libkqueue lay it out.
const Kevent = extern struct {
    ident: usize,
    filter: i16,
    flags: u16,
    fflags: u32 = 0,
    data: isize = 0,
    udata: usize = 0,
};

extern "c" fn kqueue() c_int;
extern "c" fn kevent(
    queue: c_int,
    changes: [*]const Kevent,
    change_count: c_int,
    events: [*]Kevent,
    event_count: c_int,
    timeout: ?*const std.c.timespec,
) c_int;

const is_libkqueue = builtin.os.tag == .linux;

const filter_read: i16 = -1;
const filter_write: i16 = -2;
/// libkqueue gives EVFILT_USER another number than macOS.
const filter_user: i16 = if (is_libkqueue) -11 else -10;
const flag_add: u16 = 0x0001;
const flag_delete: u16 = 0x0002;
const flag_oneshot: u16 = 0x0010;
const flag_clear: u16 = 0x0020;
const flag_receipt: u16 = 0x0040;
const flag_eof: u16 = 0x8000;
const note_trigger: u32 = 0x0100_0000;
const wake_ident: usize = 1;

/// Longer waits end early and are begun again: macOS refuses timeouts of more than 10^8 seconds,
/// and libkqueue counts milliseconds in an int.
const timeout_ns_max = std.time.ns_per_day;

comptime {
    // Tokens have 64 bits and `udata` is where they travel.
    std.debug.assert(@sizeOf(usize) == @sizeOf(u64));
}

pub const Reactor = struct {
    queue: sys.Fd,
    /// What the kernel writes; a field, since ReleaseSafe fills an undefined local at each call.
    raw: [reactor.events_max]Kevent = undefined,

    pub fn init() error{ OutOfMemory, Unexpected }!Reactor {
        // macOS closes it on exec and in a forked child without being asked.
        const queue = kqueue();
        if (queue < 0) return error.Unexpected;
        var self: Reactor = .{ .queue = queue };
        errdefer self.deinit();
        try self.change(&.{.{
            .ident = wake_ident,
            .filter = filter_user,
            .flags = flag_add | flag_clear,
            .udata = reactor.wake_token,
        }});
        return self;
    }

    pub fn deinit(self: *Reactor) void {
        sys.close(self.queue);
        self.queue = sys.no_fd;
    }

    pub fn register(self: *Reactor, fd: sys.Fd, token: u64) sys.RegisterError!void {
        const ident: usize = @intCast(fd);
        const flags = flag_add | flag_clear;
        // In this order: libkqueue forgets EPOLLRDHUP when the write filter joins the read filter,
        // and then a FIN that comes right behind data goes unseen.
        try self.change(&.{
            .{ .ident = ident, .filter = filter_write, .flags = flags, .udata = token },
            .{ .ident = ident, .filter = filter_read, .flags = flags, .udata = token },
        });
    }

    /// Reports once that the descriptor is ready, or broken; it need not be a socket.
    pub fn watch(
        self: *Reactor,
        fd: sys.Fd,
        token: u64,
        what: sys.WaitFor,
    ) sys.RegisterError!void {
        return self.change(&.{.{
            .ident = @intCast(fd),
            .filter = switch (what) {
                .readable => filter_read,
                .writable => filter_write,
            },
            .flags = flag_add | flag_oneshot,
            .udata = token,
        }});
    }

    /// Before the descriptor is closed: libkqueue does not notice that.
    pub fn unregister(self: *Reactor, fd: sys.Fd) void {
        const ident: usize = @intCast(fd);
        // A receipt for each, so that the second goes too when the first was not there (`register`
        // may have failed halfway), and so that the call returns without looking for events.
        const flags = flag_delete | flag_receipt;
        const changes = [_]Kevent{
            .{ .ident = ident, .filter = filter_read, .flags = flags },
            .{ .ident = ident, .filter = filter_write, .flags = flags },
        };
        var receipts: [changes.len]Kevent = undefined;
        _ = kevent(self.queue, &changes, changes.len, &receipts, receipts.len, null);
    }

    fn change(self: *Reactor, changes: []const Kevent) sys.RegisterError!void {
        var none: [1]Kevent = undefined;
        const count: c_int = @intCast(changes.len);
        if (kevent(self.queue, changes.ptr, count, &none, 0, null) < 0) return error.Unexpected;
    }

    /// Waits at most `timeout_ns` (null: without end) and returns the events, written to `storage`.
    pub fn poll(
        self: *Reactor,
        storage: *[reactor.events_max]reactor.Event,
        timeout_ns: ?u64,
    ) []reactor.Event {
        var timeout: std.c.timespec = undefined;
        var pointer: ?*const std.c.timespec = null;
        if (timeout_ns) |ns| {
            // The type is said, since `@min` gives the smallest that holds the bound.
            const cut: u64 = @min(ns, timeout_ns_max);
            timeout = .{
                .sec = @intCast(cut / std.time.ns_per_s),
                .nsec = @intCast(cut % std.time.ns_per_s),
            };
            pointer = &timeout;
        }
        // After a signal it fails with EINTR: no events, as after the timeout.
        const count = kevent(self.queue, &self.raw, 0, &self.raw, self.raw.len, pointer);
        if (count <= 0) return storage[0..0];
        var used: usize = 0;
        for (self.raw[0..@intCast(count)]) |event| {
            storage[used] = translate(event) orelse continue;
            used += 1;
        }
        return storage[0..used];
    }

    pub fn wake(self: *Reactor) void {
        self.change(&.{.{
            .ident = wake_ident,
            .filter = filter_user,
            .flags = 0,
            .fflags = note_trigger,
            .udata = reactor.wake_token,
        }}) catch {};
    }
};

/// A kevent in the reactor's terms; null for a wake.
fn translate(event: Kevent) ?reactor.Event {
    if (event.filter == filter_user) return null;
    const reads = event.filter == filter_read;
    const ended = event.flags & flag_eof != 0 and !is_false_end(event);
    // With EV_EOF, `fflags` is the socket's error. Without an error the client's FIN ended the read
    // filter; the write filter ends so by our own shutdown too, which is no hangup, and a client
    // that closed is seen by whoever writes next.
    const broken = ended and event.fflags != 0;
    return .{
        .token = event.udata,
        // A broken connection is shown to whoever reads or writes next.
        .readable = reads or broken,
        .writable = !reads or broken,
        .hangup = broken or (ended and reads),
        .broken = broken,
    };
}

/// libkqueue takes a readable socket without bytes for an ended one, but a worker that reads a body
/// may have taken them since the kernel said so.
fn is_false_end(event: Kevent) bool {
    if (!is_libkqueue or event.filter != filter_read) return false;
    return event.data == 0 and !sys.has_ended(@intCast(event.ident));
}

const testing = std.testing;
const ms = std.time.ns_per_ms;

fn translate_end(filter: i16, socket_error: u32) reactor.Event {
    return translate(.{
        .ident = std.math.maxInt(i32),
        .filter = filter,
        .flags = flag_clear | flag_eof,
        .fflags = socket_error,
        .data = 1,
        .udata = 7,
    }).?;
}

test "kqueue: a FIN is a hangup though data comes before it in the same event" {
    const pair = try sys.socket_pair();
    defer for (pair) |fd| sys.close(fd);
    var queue = try Reactor.init();
    defer queue.deinit();
    try queue.register(pair[0], 7);
    var events: [reactor.events_max]reactor.Event = undefined;
    _ = queue.poll(&events, 0);
    _ = try sys.send(pair[1], "abc");
    sys.shutdown_send(pair[1]);
    var hangup = false;
    for (queue.poll(&events, 1000 * ms)) |event| hangup = hangup or event.hangup;
    try testing.expect(hangup);
}

test "kqueue: the client's FIN ends reading and is a hangup" {
    const event = translate_end(filter_read, 0);
    try testing.expectEqual(reactor.Event{
        .token = 7,
        .readable = true,
        .writable = false,
        .hangup = true,
        .broken = false,
    }, event);
}

test "kqueue: our own shutdown, which macOS reports to the write filter, is no hangup" {
    const event = translate_end(filter_write, 0);
    try testing.expectEqual(reactor.Event{
        .token = 7,
        .readable = false,
        .writable = true,
        .hangup = false,
        .broken = false,
    }, event);
}

test "kqueue: the socket's error breaks the connection whichever filter tells of it" {
    for ([_]i16{ filter_read, filter_write }) |filter| {
        const event = translate_end(filter, @intFromEnum(std.c.E.CONNRESET));
        try testing.expectEqual(reactor.Event{
            .token = 7,
            .readable = true,
            .writable = true,
            .hangup = true,
            .broken = true,
        }, event);
    }
}

test "kqueue: every timeout is one that the kernel takes" {
    var queue = try Reactor.init();
    defer queue.deinit();
    var events: [reactor.events_max]reactor.Event = undefined;
    const longest = timeout_ns_max;
    for ([_]u64{ 0, 1, 999 * ms, 1999 * ms, longest - 1, std.math.maxInt(u64) }) |timeout_ns| {
        queue.wake();
        try testing.expectEqual(0, queue.poll(&events, timeout_ns).len);
        // That call took the wake, so it had not failed: this one waits.
        const before = sys.monotonic_ns();
        try testing.expectEqual(0, queue.poll(&events, 20 * ms).len);
        try testing.expect(sys.monotonic_ns() - before >= 15 * std.time.ns_per_ms);
    }
}

test "kqueue: a filter registered alone is unregistered too" {
    const pair = try sys.socket_pair();
    defer for (pair) |fd| sys.close(fd);
    var queue = try Reactor.init();
    defer queue.deinit();
    const ident: usize = @intCast(pair[0]);
    for ([_]i16{ filter_read, filter_write }) |filter| {
        const flags = flag_add | flag_clear;
        try queue.change(&.{.{ .ident = ident, .filter = filter, .flags = flags, .udata = 7 }});
        _ = try sys.send(pair[1], "x");
        queue.unregister(pair[0]);
        var events: [reactor.events_max]reactor.Event = undefined;
        try testing.expectEqual(0, queue.poll(&events, 20 * ms).len);
    }
}
