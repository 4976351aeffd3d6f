//! The reactor on macOS, and on Linux over libkqueue for its tests. Owner: the server; thread rules
//! in reactor.zig.

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

const filter_read: i16 = -1;
const filter_write: i16 = -2;
/// EVFILT_USER has another number in libkqueue than in macOS.
const filter_user: i16 = if (builtin.os.tag == .linux) -8 else -10;
const flag_add: u16 = 0x0001;
const flag_delete: u16 = 0x0002;
const flag_clear: u16 = 0x0020;
const flag_eof: u16 = 0x8000;
const note_trigger: u32 = 0x0100_0000;
const wake_ident: usize = 1;

pub const Reactor = struct {
    queue: sys.Fd,
    /// What the kernel writes; a field, since ReleaseSafe fills an undefined local at each call.
    raw: [reactor.events_max]Kevent = undefined,

    pub fn init() error{ OutOfMemory, Unexpected }!Reactor {
        const queue = kqueue();
        if (queue < 0) return error.Unexpected;
        var self: Reactor = .{ .queue = queue };
        errdefer self.deinit();
        try self.change(&.{.{
            .ident = wake_ident,
            .filter = filter_user,
            .flags = flag_add | flag_clear,
            .udata = @truncate(reactor.wake_token),
        }});
        return self;
    }

    pub fn deinit(self: *Reactor) void {
        sys.close(self.queue);
    }

    pub fn register(self: *Reactor, fd: sys.Fd, token: u64) sys.RegisterError!void {
        const ident: usize = @intCast(fd);
        const udata: usize = @intCast(token);
        try self.change(&.{
            .{
                .ident = ident,
                .filter = filter_read,
                .flags = flag_add | flag_clear,
                .udata = udata,
            },
            .{
                .ident = ident,
                .filter = filter_write,
                .flags = flag_add | flag_clear,
                .udata = udata,
            },
        });
    }

    pub fn unregister(self: *Reactor, fd: sys.Fd) void {
        const ident: usize = @intCast(fd);
        for ([_]i16{ filter_read, filter_write }) |filter| {
            // A descriptor whose client has gone may have lost a filter already.
            self.change(&.{.{ .ident = ident, .filter = filter, .flags = flag_delete }}) catch {};
        }
    }

    fn change(self: *Reactor, changes: []const Kevent) sys.RegisterError!void {
        var none: [1]Kevent = undefined;
        const count: c_int = @intCast(changes.len);
        if (kevent(self.queue, changes.ptr, count, &none, 0, null) < 0) return error.Unexpected;
    }

    /// Waits at most `timeout_ms` (null: without end) and returns the events, written to `storage`.
    pub fn poll(
        self: *Reactor,
        storage: *[reactor.events_max]reactor.Event,
        timeout_ms: ?u64,
    ) []reactor.Event {
        const timeout: ?std.c.timespec = if (timeout_ms) |ms| .{
            .sec = @intCast(@min(ms / std.time.ms_per_s, std.math.maxInt(i32))),
            .nsec = @intCast((ms % std.time.ms_per_s) * std.time.ns_per_ms),
        } else null;
        const pointer: ?*const std.c.timespec = if (timeout) |*value| value else null;
        const count = kevent(self.queue, &self.raw, 0, &self.raw, self.raw.len, pointer);
        if (count <= 0) return storage[0..0];
        var used: usize = 0;
        for (self.raw[0..@intCast(count)]) |event| {
            if (event.filter == filter_user) continue;
            const ended = event.flags & flag_eof != 0;
            // EV_EOF on the read filter is the client's FIN, on the write filter a connection that
            // takes nothing more.
            const broken = ended and (event.filter == filter_write or event.fflags != 0);
            storage[used] = .{
                .token = event.udata,
                .readable = event.filter == filter_read or broken,
                .writable = event.filter == filter_write or broken,
                .hangup = ended,
                .broken = broken,
            };
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
            .udata = @truncate(reactor.wake_token),
        }}) catch {};
    }
};
