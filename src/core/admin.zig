//! The admin listener: health, metrics, status and stacks, from a thread of its own.
//!
//! It starts before the application is imported and ends with the process. It never has the GIL,
//! the baton or a lock that anybody holds for long, so it answers while a handler holds the GIL,
//! while every thread is stuck and while the application is imported. Few clients, few bytes, and a
//! deadline for each state: everything here but `server`, `stage`, `inspector` and the wake-up
//! belongs to the one thread that `run` is. What each path answers is in admin_pages.zig.

const std = @import("std");
const forks = @import("forks.zig");
const sys = @import("sys.zig");
const pages = @import("pages.zig");
const health_module = @import("health.zig");
const date_module = @import("date.zig");
const request_head = @import("request_head.zig");
const admin_hosts = @import("admin_hosts.zig");
const admin_pages = @import("admin_pages.zig");
const cidr = @import("cidr.zig");
const Inspector = @import("inspector.zig").Inspector;
const Watchdog = @import("watchdog.zig").Watchdog;
const Server = @import("server.zig").Server;
const RequestHead = request_head.RequestHead;
const FieldLine = request_head.FieldLine;
const Stage = health_module.Stage;

pub const listeners_max = 8;
pub const connections_max = 64;
/// For probes, scrapers and browsers; more than any of them sends.
const head_limits: request_head.Limits = .{
    .request_line_bytes_max = 2 * 1024,
    .head_bytes_max = 8 * 1024,
    .field_lines_max = 64,
};
const head_timeout_ms = 10_000;
/// More than the usual interval of a scraper.
const keep_alive_timeout_ms = 75_000;
const write_timeout_ms = 10_000;
/// How long a refused client may take to read why.
const linger_ms = 1000;
const accept_pause_ms = 1000;
/// Descriptors held back for probes: the clients of the application may take all others.
const reserve_max = 2;
/// How long the Python stacks are waited for.
pub const stacks_timeout_ms = 1000;
/// How long the helper has to say that the start takes too long, before it is said without it.
const late_grace_ms = 1000;
pub const late_exit_status = 3;

pub const Options = struct {
    livez_stall_ms: u64 = 30_000,
    /// For import and startup together; 0: none.
    startup_timeout_ms: u64 = 0,
    /// See watchdog.zig; the admin takes the descriptor over.
    watchdog_fd: sys.Fd = sys.no_fd,
    watchdog_period_ms: u64 = 0,
    /// The resolved config as a JSON object, and Python's version.
    config: []const u8 = "{}",
    python: []const u8 = "",
    /// As `admin_hosts.Allowed`.
    hosts: []const u8 = "",
    any_address: bool = false,
};

const State = enum(u8) {
    free,
    /// Idle or in the middle of a head. Deadline: keep-alive, or head.
    reading,
    /// The Python stacks were asked for. Deadline: `stacks_timeout_ms`.
    waiting,
    /// Deadline: write, anew with each progress.
    writing,
    /// Our side is shut. Deadline: short.
    lingering,
};

/// Zero is a free one.
const Connection = struct {
    state: State,
    fd: sys.Fd,
    deadline_ms: u64,
    head: RequestHead,
    received: u32,
    /// Bytes of a next request have come with the last one.
    has_more: bool,
    persists: bool,
    is_unix: bool,
    /// The response in progress; the admin's own.
    output: []u8,
    sent: usize,
    field_lines: [head_limits.field_lines_max]FieldLine,
    bytes: [head_limits.head_bytes_max]u8,
};

pub const InitError = error{ OutOfMemory, Unexpected };

pub const Admin = struct {
    gpa: std.mem.Allocator,
    options: Options,
    inspector: Inspector,
    /// Null until it serves.
    server: std.atomic.Value(?*Server) = .init(null),
    stage: std.atomic.Value(Stage) = .init(.importing),
    stopping: std.atomic.Value(bool) = .init(false),
    wake_pair: [2]sys.Fd,
    thread: ?std.Thread = null,
    started_ms: u64,

    // The thread's own.
    listeners: [listeners_max]sys.Fd = @splat(sys.no_fd),
    listener_count: usize,
    connections: []Connection,
    reserve: [reserve_max]sys.Fd = @splat(sys.no_fd),
    entries: [1 + listeners_max + connections_max]sys.PollEntry = undefined,
    watch: health_module.Watch,
    watchdog: Watchdog,
    watched_ms: u64 = 0,
    accept_after_ms: u64 = 0,
    late_said_ms: ?u64 = null,
    now_ms: u64,
    date: date_module.Date = .{},
    pages: admin_pages.Pages,

    /// Takes over the listeners' descriptors, which are bound and listening, and starts the
    /// thread. `options` must live as long as the admin does.
    pub fn create(
        gpa: std.mem.Allocator,
        options: Options,
        listeners: []const sys.Fd,
    ) InitError!*Admin {
        std.debug.assert(listeners.len <= listeners_max);
        const self = try gpa.create(Admin);
        errdefer gpa.destroy(self);
        const connections = try pages.alloc(Connection, connections_max);
        errdefer pages.free(connections);
        const wake_pair = try sys.socket_pair();
        errdefer for (wake_pair) |fd| sys.close(fd);
        const now_ms = sys.monotonic_ms();
        self.* = .{
            .gpa = gpa,
            .options = options,
            .inspector = .{ .gpa = gpa },
            .wake_pair = wake_pair,
            .started_ms = now_ms,
            .listener_count = listeners.len,
            .connections = connections,
            .watch = .{ .stall_ms = options.livez_stall_ms },
            .watchdog = .{ .fd = options.watchdog_fd, .period_ms = options.watchdog_period_ms },
            .now_ms = now_ms,
            .pages = .init(),
        };
        for (listeners, self.listeners[0..listeners.len]) |fd, *own| {
            sys.set_nonblocking(fd);
            sys.set_no_delay(fd);
            own.* = fd;
        }
        const config: std.Thread.SpawnConfig = .{ .stack_size = 512 * 1024 };
        self.thread = std.Thread.spawn(config, run, .{self}) catch return error.Unexpected;
        return self;
    }

    /// Ends the thread and frees everything; the helper must have gone.
    pub fn destroy(self: *Admin) void {
        self.stop();
        for (self.wake_pair) |fd| sys.close(fd);
        self.inspector.deinit();
        pages.free(self.connections);
        self.gpa.destroy(self);
    }

    // ---- Any thread ----------------------------------------------------------------------------

    pub fn set_stage(self: *Admin, stage: Stage) void {
        self.stage.store(stage, .release);
        self.wake();
    }

    /// From here on the answers are about this server, which must outlive the admin.
    pub fn serve(self: *Admin, server: *Server) void {
        self.server.store(server, .release);
        self.set_stage(.serving);
    }

    pub fn wake(self: *Admin) void {
        // A full socket has woken it already.
        _ = sys.send(self.wake_pair[1], "x") catch {};
    }

    /// Closes the listeners and every connection. Once; not the admin thread itself.
    pub fn stop(self: *Admin) void {
        const thread = self.thread orelse return;
        self.stopping.store(true, .release);
        self.wake();
        thread.join();
        self.thread = null;
    }

    /// In a process that was forked from the server's, as `Poller.close_in_child`.
    pub fn close_in_child(self: *Admin) void {
        for (self.listeners[0..self.listener_count]) |*fd| forks.close_for_good(fd);
        for (self.connections) |*connection| {
            // Zero is a free one.
            if (connection.state != .free) forks.close_for_good(&connection.fd);
        }
        for (&self.reserve) |*fd| forks.close_for_good(fd);
        for (&self.wake_pair) |*fd| forks.close_for_good(fd);
        self.watchdog.close();
    }

    // ---- The thread ----------------------------------------------------------------------------

    fn run(self: *Admin) void {
        while (!self.stopping.load(.acquire)) self.step();
        for (self.connections) |*connection| {
            if (connection.state != .free) self.close(connection);
        }
        forks.lock();
        defer forks.unlock();
        for (self.listeners[0..self.listener_count]) |*fd| forks.close_for_good(fd);
        for (&self.reserve) |*fd| forks.close_for_good(fd);
        self.watchdog.close();
    }

    fn step(self: *Admin) void {
        self.refill_reserve();
        const entries = self.prepare();
        sys.poll(entries, self.timeout_ms());
        self.now_ms = sys.monotonic_ms();
        if (entries[0].revents != 0) {
            var woken: [64]u8 = undefined;
            _ = sys.recv(self.wake_pair[0], &woken) catch {};
        }
        self.take_answers();
        const first = 1 + self.listener_count;
        const used = entries.len - first;
        for (self.connections[0..used], entries[first..]) |*connection, entry| {
            if (entry.revents != 0) self.proceed(connection);
        }
        if (self.now_ms >= self.accept_after_ms) {
            for (entries[1..first]) |entry| if (entry.revents != 0) self.accept(entry.fd);
        }
        self.expire();
        self.parse_what_came();
        self.look_after();
    }

    fn prepare(self: *Admin) []sys.PollEntry {
        const first = 1 + self.listener_count;
        // No more than there are descriptors: poll(2) refuses more than the process may open.
        var used = self.connections.len;
        while (used > 0 and self.connections[used - 1].state == .free) used -= 1;
        const entries = self.entries[0 .. first + used];
        const accepts = self.now_ms >= self.accept_after_ms and self.find_room() != null;
        entries[0] = .{ .fd = self.wake_pair[0], .events = sys.poll_readable, .revents = 0 };
        for (self.listeners[0..self.listener_count], entries[1..first]) |fd, *entry| {
            const shown = if (accepts) fd else sys.no_fd;
            entry.* = .{ .fd = shown, .events = sys.poll_readable, .revents = 0 };
        }
        for (self.connections[0..used], entries[first..]) |*connection, *entry| {
            const events: i16 = switch (connection.state) {
                .free, .waiting => 0,
                .reading, .lingering => sys.poll_readable,
                .writing => sys.poll_writable,
            };
            const fd = if (events == 0) sys.no_fd else connection.fd;
            entry.* = .{ .fd = fd, .events = events, .revents = 0 };
        }
        return entries;
    }

    fn timeout_ms(self: *const Admin) u64 {
        const now_ms = sys.monotonic_ms();
        var earliest = self.watched_ms + self.watch.period_ms();
        for (self.connections) |*connection| {
            if (connection.state != .free) earliest = @min(earliest, connection.deadline_ms);
        }
        if (self.late_at_ms()) |time| earliest = @min(earliest, time);
        if (self.watchdog.due_ms()) |time| earliest = @min(earliest, time);
        if (now_ms < self.accept_after_ms) earliest = @min(earliest, self.accept_after_ms);
        // One more, so that the coarse clock has passed the deadline when the poll returns.
        return earliest -| now_ms + 1;
    }

    // ---- Connections ---------------------------------------------------------------------------

    /// A free slot, or else one that is to be closed for it.
    fn find_room(self: *Admin) ?*Connection {
        for (self.connections) |*connection| if (connection.state == .free) return connection;
        return self.find_occupied();
    }

    /// The one that has been idle longest, or else the one that sends its head or takes its answer
    /// most slowly: a probe does both at once, and must not wait for those.
    fn find_occupied(self: *Admin) ?*Connection {
        var idle: ?*Connection = null;
        var slow: ?*Connection = null;
        for (self.connections) |*connection| {
            const is_idle = switch (connection.state) {
                .free, .waiting => continue,
                .reading => connection.received == 0,
                .writing => false,
                .lingering => true,
            };
            const first = if (is_idle) &idle else &slow;
            if (first.* == null or connection.deadline_ms < first.*.?.deadline_ms) {
                first.* = connection;
            }
        }
        return idle orelse slow;
    }

    fn accept(self: *Admin, listener: sys.Fd) void {
        while (self.find_room()) |connection| {
            self.accept_into(listener, connection) catch |err| switch (err) {
                error.WouldBlock => return,
                error.ConnectionGone => continue,
                error.DescriptorsExhausted => {
                    // accept(2) says so before it looks whether anybody waits.
                    if (!sys.may_be_ready(listener, .readable)) return;
                    if (self.give_up_descriptor()) continue;
                    self.accept_after_ms = self.now_ms + accept_pause_ms;
                    return;
                },
                error.OutOfMemory, error.Unexpected => {
                    self.accept_after_ms = self.now_ms + accept_pause_ms;
                    return;
                },
            };
            connection.received = 0;
            connection.has_more = false;
            connection.output = &.{};
            connection.head = .init(&connection.field_lines);
            connection.deadline_ms = self.now_ms + head_timeout_ms;
            self.proceed(connection);
        }
    }

    /// Takes a client from the backlog into the slot, whose earlier client goes for it.
    fn accept_into(self: *Admin, listener: sys.Fd, connection: *Connection) sys.AcceptError!void {
        forks.lock();
        defer forks.unlock();
        const accepted = try sys.accept(listener);
        if (connection.state != .free) self.close_locked(connection);
        connection.fd = accepted.fd;
        connection.is_unix = cidr.Ip.of(&accepted.address) == null;
        connection.state = .reading;
    }

    /// Makes one free for a new client; false where there is none to give up.
    fn give_up_descriptor(self: *Admin) bool {
        for (&self.reserve) |*fd| {
            if (fd.* == sys.no_fd) continue;
            forks.lock();
            defer forks.unlock();
            sys.close(fd.*);
            fd.* = sys.no_fd;
            return true;
        }
        const connection = self.find_occupied() orelse return false;
        self.close(connection);
        return true;
    }

    fn refill_reserve(self: *Admin) void {
        if (self.listener_count == 0) return;
        for (&self.reserve) |*fd| {
            if (fd.* != sys.no_fd) continue;
            forks.lock();
            defer forks.unlock();
            fd.* = sys.duplicate(self.wake_pair[0]) orelse return;
        }
    }

    fn close(self: *Admin, connection: *Connection) void {
        forks.lock();
        defer forks.unlock();
        self.close_locked(connection);
    }

    fn close_locked(self: *Admin, connection: *Connection) void {
        self.drop_output(connection);
        sys.close(connection.fd);
        connection.fd = sys.no_fd;
        connection.state = .free;
    }

    fn drop_output(self: *Admin, connection: *Connection) void {
        if (connection.output.len > 0) self.gpa.free(connection.output);
        connection.output = &.{};
        connection.sent = 0;
    }

    fn proceed(self: *Admin, connection: *Connection) void {
        switch (connection.state) {
            .free, .waiting => {},
            .reading => self.read(connection),
            .writing => self.write(connection),
            .lingering => self.drop_input(connection),
        }
    }

    fn read(self: *Admin, connection: *Connection) void {
        const was_idle = connection.received == 0;
        const room = connection.bytes[connection.received..];
        // The parser refuses a head before it fills the buffer.
        const count = sys.recv(connection.fd, room) catch |err| switch (err) {
            error.WouldBlock => return,
            error.ConnectionGone, error.OutOfMemory, error.Unexpected => {
                return self.close(connection);
            },
        };
        if (count == 0) return self.close(connection);
        connection.received += @intCast(count);
        if (was_idle) connection.deadline_ms = self.now_ms + head_timeout_ms;
        self.parse(connection);
    }

    fn parse(self: *Admin, connection: *Connection) void {
        const bytes = connection.bytes[0..connection.received];
        const is_complete = connection.head.parse(bytes, head_limits) catch |err| {
            return self.refuse(
                connection,
                request_head.status_of(err),
                request_head.reason_of(err),
            );
        };
        if (is_complete) return self.answer(connection);
        if (connection.received == connection.bytes.len) self.refuse(connection, 431, "head");
    }

    fn answer(self: *Admin, connection: *Connection) void {
        const head = &connection.head;
        // A body is not read: it would be taken for the next request.
        connection.persists = head.persistent and head.framing == .none;
        const allowed: admin_hosts.Allowed = .{
            .hosts = self.options.hosts,
            .any_address = self.options.any_address,
        };
        if (admin_hosts.refusal(allowed, head, &connection.bytes, connection.is_unix)) |why| {
            return self.send(connection, admin_pages.refusal_of_host(why));
        }
        const path = head.path.of(&connection.bytes);
        if (std.mem.eql(u8, path, "/threads") and self.is_plain(connection)) {
            connection.state = .waiting;
            connection.deadline_ms = self.now_ms + stacks_timeout_ms;
            return self.inspector.ask(.stacks);
        }
        const request: admin_pages.Request = .{
            .method = head.method.of(&connection.bytes),
            .path = path,
            .accept = self.accept_of(connection),
        };
        self.send(connection, self.pages.answer(self, request));
    }

    fn is_plain(_: *const Admin, connection: *const Connection) bool {
        const method = connection.head.method.of(&connection.bytes);
        return std.mem.eql(u8, method, "GET") or std.mem.eql(u8, method, "HEAD");
    }

    fn accept_of(_: *const Admin, connection: *const Connection) []const u8 {
        for (connection.head.lines()) |line| {
            const name = line.name.of(&connection.bytes);
            if (std.ascii.eqlIgnoreCase(name, "accept")) return line.value.of(&connection.bytes);
        }
        return "";
    }

    fn refuse(self: *Admin, connection: *Connection, status: u16, reason: []const u8) void {
        connection.persists = false;
        self.send(connection, admin_pages.refusal(status, reason));
    }

    /// Sends the answer, and goes on with the connection when it has left.
    fn send(self: *Admin, connection: *Connection, given: admin_pages.Answer) void {
        var answer_given = given;
        defer answer_given.deinit(self.gpa);
        const method = connection.head.method.of(&connection.bytes);
        const text = admin_pages.compose(self.gpa, &answer_given, .{
            .date = self.date.at(sys.realtime_seconds()),
            .is_head = std.mem.eql(u8, method, "HEAD"),
            .persists = connection.persists,
            .is_old = connection.head.version == .http_1_0,
        }) catch return self.close(connection);
        connection.output = text;
        connection.sent = 0;
        connection.state = .writing;
        connection.deadline_ms = self.now_ms + write_timeout_ms;
        self.write(connection);
    }

    fn write(self: *Admin, connection: *Connection) void {
        while (connection.sent < connection.output.len) {
            const rest = connection.output[connection.sent..];
            const count = sys.send(connection.fd, rest) catch |err| switch (err) {
                error.WouldBlock => return,
                error.ConnectionGone, error.OutOfMemory, error.Unexpected => {
                    return self.close(connection);
                },
            };
            connection.sent += count;
            connection.deadline_ms = self.now_ms + write_timeout_ms;
        }
        self.drop_output(connection);
        if (connection.persists) return self.next_request(connection);
        // A reset on what the client still sends would take the answer with it (RFC 9112 9.6).
        sys.shutdown_send(connection.fd);
        connection.state = .lingering;
        connection.deadline_ms = self.now_ms + linger_ms;
    }

    fn next_request(self: *Admin, connection: *Connection) void {
        const end = connection.head.head_bytes;
        const rest = connection.bytes[end..connection.received];
        std.mem.copyForwards(u8, connection.bytes[0..rest.len], rest);
        connection.received = @intCast(rest.len);
        connection.head.reset();
        connection.state = .reading;
        connection.has_more = rest.len > 0;
        const timeout: u64 = if (connection.has_more) head_timeout_ms else keep_alive_timeout_ms;
        connection.deadline_ms = self.now_ms + timeout;
    }

    fn parse_what_came(self: *Admin) void {
        for (self.connections) |*connection| {
            while (connection.state == .reading and connection.has_more) {
                connection.has_more = false;
                self.parse(connection);
            }
        }
    }

    fn drop_input(self: *Admin, connection: *Connection) void {
        const count = sys.recv(connection.fd, &connection.bytes) catch |err| switch (err) {
            error.WouldBlock => return,
            error.ConnectionGone, error.OutOfMemory, error.Unexpected => 0,
        };
        if (count == 0) self.close(connection);
    }

    fn expire(self: *Admin) void {
        for (self.connections) |*connection| {
            if (connection.state == .free or connection.deadline_ms > self.now_ms) continue;
            switch (connection.state) {
                .free => {},
                .waiting => self.send(connection, self.pages.without_stacks(self)),
                .reading => if (connection.received > 0) {
                    self.refuse(connection, 408, "head_timeout");
                } else {
                    self.close(connection);
                },
                .writing, .lingering => self.close(connection),
            }
        }
    }

    // ---- The helper, the watch and the start ---------------------------------------------------

    fn take_answers(self: *Admin) void {
        if (self.inspector.had_gil.swap(false, .acq_rel)) self.watch.took_gil();
        const text = self.inspector.take_text() orelse return;
        defer self.gpa.free(text);
        for (self.connections) |*connection| {
            if (connection.state != .waiting) continue;
            self.send(connection, .{ .content_type = admin_pages.json, .body = text });
        }
    }

    /// Whether the process lives, and whether its start takes too long.
    fn look_after(self: *Admin) void {
        if (self.late_at_ms()) |time| if (self.now_ms >= time) self.give_up_start();
        self.observe();
        self.watchdog.feed(self.now_ms, self.lives());
    }

    /// What /livez says.
    pub fn lives(self: *const Admin) bool {
        const server = self.server.load(.acquire) orelse return true;
        return server.health.stalled_ms.load(.acquire) == 0;
    }

    fn observe(self: *Admin) void {
        if (self.now_ms < self.watched_ms + self.watch.period_ms()) return;
        self.watched_ms = self.now_ms;
        const server = self.server.load(.acquire) orelse return;
        if (self.watch.observe(self.now_ms, server.scheduler.pulse())) self.inspector.ask(.probe);
        server.health.stalled_ms.store(self.watch.stalled_ms(self.now_ms), .release);
    }

    fn late_at_ms(self: *const Admin) ?u64 {
        if (self.options.startup_timeout_ms == 0) return null;
        switch (self.stage.load(.acquire)) {
            .importing, .startup, .starting => {},
            .serving, .shutdown => return null,
        }
        const allowed_ms = self.started_ms + self.options.startup_timeout_ms;
        return if (self.late_said_ms) |said_ms| said_ms + late_grace_ms else allowed_ms;
    }

    /// The helper tells where the start hangs and ends the process. If it does not get the GIL to
    /// do so, the process ends all the same.
    fn give_up_start(self: *Admin) void {
        if (self.late_said_ms == null) {
            self.late_said_ms = self.now_ms;
            return self.inspector.ask(.late);
        }
        sys.write_error("serve-zig: error: app.startup_timeout is over while " ++
            "the application holds the GIL; the server gives up\n");
        sys.exit_now(late_exit_status);
    }
};
