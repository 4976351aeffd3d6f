//! The reactor on Linux. Owner: the server; thread rules in reactor.zig.

const sys = @import("../sys.zig");
const reactor = @import("../reactor.zig");
const epoll = sys.epoll;

pub const Reactor = struct {
    poll_fd: sys.Fd,
    wake_fd: sys.Fd,
    /// What the kernel writes; a field, since ReleaseSafe fills an undefined local at each call.
    raw: [reactor.events_max]epoll.Event = undefined,

    pub fn init() error{ OutOfMemory, Unexpected }!Reactor {
        const poll_fd = try epoll.create();
        errdefer sys.close(poll_fd);
        const wake_fd = try epoll.event_fd();
        errdefer sys.close(wake_fd);
        // Edge-triggered as well: each `wake` adds to the counter, which is an edge, so it need be
        // read only to keep it from filling up.
        try epoll.add(poll_fd, wake_fd, epoll.IN | epoll.ET, reactor.wake_token);
        return .{ .poll_fd = poll_fd, .wake_fd = wake_fd };
    }

    pub fn deinit(self: *Reactor) void {
        sys.close(self.wake_fd);
        sys.close(self.poll_fd);
        self.wake_fd = sys.no_fd;
        self.poll_fd = sys.no_fd;
    }

    pub fn register(self: *Reactor, fd: sys.Fd, token: u64) sys.RegisterError!void {
        const events = epoll.IN | epoll.OUT | epoll.RDHUP | epoll.ET;
        return epoll.add(self.poll_fd, fd, events, token);
    }

    /// Reports once that the descriptor is ready, or broken; it need not be a socket.
    pub fn watch(
        self: *Reactor,
        fd: sys.Fd,
        token: u64,
        what: sys.WaitFor,
    ) sys.RegisterError!void {
        const events: u32 = switch (what) {
            .readable => epoll.IN | epoll.RDHUP,
            .writable => epoll.OUT,
        };
        return epoll.add(self.poll_fd, fd, events | epoll.ONESHOT, token);
    }

    /// Before the descriptor is closed: a duplicate of it elsewhere (an application's child
    /// process) would keep the registration alive beyond `close`.
    pub fn unregister(self: *Reactor, fd: sys.Fd) void {
        epoll.remove(self.poll_fd, fd);
    }

    /// Waits at most `timeout_ns` (null: without end) and returns the events, written to `storage`.
    pub fn poll(
        self: *Reactor,
        storage: *[reactor.events_max]reactor.Event,
        timeout_ns: ?u64,
    ) []reactor.Event {
        const count = epoll.wait(self.poll_fd, &self.raw, timeout_ns);
        var used: usize = 0;
        for (self.raw[0..count]) |event| {
            if (event.data.u64 == reactor.wake_token) {
                epoll.event_fd_reset(self.wake_fd);
                continue;
            }
            const broken = event.events & (epoll.ERR | epoll.HUP) != 0;
            storage[used] = .{
                .token = event.data.u64,
                // A broken connection is shown to whoever reads or writes next.
                .readable = broken or event.events & epoll.IN != 0,
                .writable = broken or event.events & epoll.OUT != 0,
                .hangup = broken or event.events & epoll.RDHUP != 0,
                .broken = broken,
            };
            used += 1;
        }
        return storage[0..used];
    }

    pub fn wake(self: *Reactor) void {
        epoll.event_fd_add(self.wake_fd);
    }
};
