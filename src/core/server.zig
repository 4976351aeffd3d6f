//! The server: what all threads share, how it starts and ends, and a worker's way through a
//! request.
//!
//! `Server` is the scheduler's host. The baton's holder runs `poll`, which is all of poller.zig;
//! any worker runs `run`. The poller's own data is in `poller`; what threads share is atomic or has
//! a lock of its own. The application is behind `Application`, so that the whole server is tested
//! without Python.

const std = @import("std");
const builtin = @import("builtin");
const forks = @import("forks.zig");
const sys = @import("sys.zig");
const date_module = @import("date.zig");
const refusal_module = @import("refusal.zig");
const ResponseHead = @import("response_head.zig").ResponseHead;
const body_module = @import("body.zig");
const request_head = @import("request_head.zig");
const scheduler_module = @import("scheduler.zig");
const reply_module = @import("reply.zig");
const exchange_module = @import("exchange.zig");
const pages = @import("pages.zig");
const access_log = @import("access_log.zig");
const log_text = @import("log_text.zig");
const log_writer = @import("log_writer.zig");
const in_flight = @import("in_flight.zig");
const metrics_module = @import("metrics.zig");
const observer = @import("observer.zig");
const reasons = @import("reasons.zig");
const request_ids = @import("request_id.zig");
const connection_module = @import("connection.zig");
const eviction = @import("eviction.zig");
const overdue_module = @import("overdue.zig");
const poller_module = @import("poller.zig");
const Poller = poller_module.Poller;
const health_module = @import("health.zig");
const Health = health_module.Health;
const proxies_module = @import("proxies.zig");
const notices_module = @import("notices.zig");
const static_module = @import("static.zig");
const Suspension = @import("suspension.zig").Suspension;
const BufferMemory = @import("buffer_memory.zig").BufferMemory;
const Connection = connection_module.Connection;
const Exchange = exchange_module.Exchange;
const Reply = reply_module.Reply;
const Turn = connection_module.Turn;
const Phase = @import("timing.zig").Phase;
pub const Worker = scheduler_module.Worker;

/// Every setting of the core; times in milliseconds, sizes in bytes. The names are those of the
/// keys that the launcher passes.
pub const Options = struct {
    threads: u32 = 32,
    queue: u32 = 1024,
    queue_timeout_ms: u64 = 10_000,
    connections: u32 = 10_000,
    request_line_bytes: u32 = 8 * 1024,
    head_bytes: u32 = 64 * 1024,
    fields: u16 = 100,
    body_bytes: u64 = 1024 * 1024 * 1024,
    body_memory_bytes: u64 = 1024 * 1024,
    requests_per_connection: u32 = 0,
    response_memory_bytes: u64 = 1024 * 1024,
    buffer_memory_bytes: u64 = 256 * 1024 * 1024,
    /// Of unacknowledged bytes of all stalled clients, in the kernel; 0: no limit.
    socket_memory_bytes: u64 = 0,
    head_timeout_ms: u64 = 10_000,
    body_timeout_ms: u64 = 30_000,
    keep_alive_timeout_ms: u64 = 75_000,
    write_timeout_ms: u64 = 3_600_000,
    drain_timeout_ms: u64 = 30_000,
    /// Where request bodies beyond `body_memory_bytes` go.
    temporary_directory: []const u8 = "/tmp",
    /// For one application call; 0: none. What is done then is an `overdue.Action`.
    request_timeout_ms: u64 = 0,
    request_action: u8 = 0,
    /// After so many requests the launcher is told; 0: never.
    requests_limit: u64 = 0,
    /// The path prefix under which the poller answers livez and readyz; empty: none.
    in_band: []const u8 = "",
    /// For `Proxies.init`.
    proxy_trusted: []const u8 = "",
    proxy_headers: []const u8 = "x-forwarded",
    proxy_protocol: bool = false,
    /// For the metrics.
    python_version: []const u8 = "",
    /// "stdout", "stderr" or a path; empty for none.
    access_log: []const u8 = "",
    /// Paths that are not in it when answered below 400, one a line.
    access_exclude: []const u8 = "",
    /// Lines are JSON, else text.
    log_json: bool = false,
    /// 0 for errors alone, 1 with warnings, 2 with all.
    log_level: u8 = 0,
    /// Requests that take longer are logged with their phases; 0 for none.
    slow_request_ms: u64 = 0,
    /// Answers have a Server-Timing field.
    server_timing: bool = false,
    /// The environ says how long each phase before the application took: for spans.
    phases: bool = false,
    /// What is answered from files.
    static: []const static_module.Options = &.{},

    pub fn head_limits(self: *const Options) request_head.Limits {
        return .{
            .request_line_bytes_max = self.request_line_bytes,
            .head_bytes_max = self.head_bytes,
            .field_lines_max = self.fields,
        };
    }

    pub fn body_limits(self: *const Options) body_module.Limits {
        return .{
            .bytes_max = self.body_bytes,
            .memory_bytes_max = @intCast(self.body_memory_bytes),
            .timeout_ms = self.body_timeout_ms,
            .temporary_directory = self.temporary_directory,
        };
    }

    pub fn reply_limits(self: *const Options) reply_module.Limits {
        return .{
            .memory_bytes_max = @intCast(self.response_memory_bytes),
            .timeout_ms = self.write_timeout_ms,
            .drain_timeout_ms = self.drain_timeout_ms,
            .server_timing = self.server_timing,
        };
    }

    fn log_options(self: *const Options) log_writer.Options {
        return .{ .access = self.access_log, .quoting = self.quoting() };
    }

    fn rules(self: *const Options) observer.Rules {
        return .{
            .access = self.access_log.len > 0,
            .quoting = self.quoting(),
            .level = @enumFromInt(@min(self.log_level, @intFromEnum(log_text.Level.info))),
            .excluded_paths = self.access_exclude,
            .slow_ns = if (self.slow_request_ms == 0)
                std.math.maxInt(u64)
            else
                self.slow_request_ms *| std.time.ns_per_ms,
        };
    }

    fn quoting(self: *const Options) log_text.Quoting {
        return if (self.log_json) .json else .text;
    }
};

/// What calls the application. Both functions leave the reply finished, aborted, broken or parked.
pub const Application = struct {
    context: *anyopaque,
    handle: *const fn (*anyopaque, *Crew) void,
    /// Goes on with a parked reply, whose continuation is the exchange's no more.
    proceed: *const fn (*anyopaque, *Crew, continuation: *anyopaque) void,
    interlude: body_module.Interlude,
};

/// A worker and what it keeps from request to request. One for each thread; its own thread only.
pub const Crew = struct {
    worker: Worker,
    has_begun: std.atomic.Value(bool) = .init(false),
    server: *Server,
    reply: Reply,
    lane: observer.Lane,
    /// The request being answered, for other threads.
    current: in_flight.Current = .{},
    /// Its time limit, if there is one.
    call: overdue_module.Call = .{},
    /// The same for this thread.
    connection: *Connection = undefined,
    exchange: *Exchange = undefined,
    /// What the thread must show to get the GIL back; while it is detached.
    thread_state: ?*anyopaque = null,

    /// Whoever waits for the client calls these, with the GIL.
    fn begin_wait(self: *Crew, phase: Phase) void {
        self.exchange.record.timing.pass(.app, sys.monotonic_ns());
        self.current.phase.store(phase, .release);
    }

    fn end_wait(self: *Crew, phase: Phase) void {
        self.exchange.record.timing.pass(phase, sys.monotonic_ns());
        self.current.phase.store(.app, .release);
    }

    pub fn read_body(self: *Crew, destination: []u8) body_module.ReadError!usize {
        const record = &self.exchange.record;
        // A body that has failed does not go on: what came meanwhile may lack a part.
        if (record.body_error) |err| return err;
        if (self.exchange.body.mode == .streamed) return self.read_stream(destination);
        return self.read_once(destination);
    }

    fn read_stream(self: *Crew, destination: []u8) body_module.ReadError!usize {
        // The client may be told to go on, which must not come behind an answer of the poller's.
        if (self.server.limits_calls() and !self.call.begin_interim()) return error.ClientGone;
        defer if (self.server.limits_calls()) self.call.end_interim(true);
        self.begin_wait(.body);
        defer self.end_wait(.body);
        return self.read_once(destination);
    }

    fn read_once(self: *Crew, destination: []u8) body_module.ReadError!usize {
        const record = &self.exchange.record;
        const fd = self.connection.fd;
        const limits = &self.server.body_limits;
        const interlude = self.server.application.interlude;
        return self.exchange.body.read(fd, destination, limits, interlude) catch |err| {
            record.body_error = err;
            switch (err) {
                error.TimedOut => record.timed_out = .body,
                error.ClientGone => record.client_gone = true,
                error.OutOfMemory, error.NoSpace, error.Unexpected => {},
            }
            return err;
        };
    }
};

pub const Outcome = enum(u8) { serving, drained, timed_out, stopped };

pub const Counts = struct {
    connections: u64,
    requests: u64,
    dropped: u64,
    running: u64,
    queued: u64,
    parked: u64,
    shed: u64,
    steals: u64,
};

/// How long in the queue makes a half-closed connection look abandoned.
const patience_ns = 250 * std.time.ns_per_ms;

pub const InitError = error{ OutOfMemory, CannotOpen, Unexpected } || proxies_module.InitError;

pub const Server = struct {
    pub const Task = Connection;
    pub const Scheduler = scheduler_module.Scheduler(Server);

    gpa: std.mem.Allocator,
    options: Options,
    body_limits: body_module.Limits,
    buffer_memory: BufferMemory,
    /// Half of the threads may wait for clients that were asked to continue.
    streams: body_module.Streams,
    application: Application,
    scheduler: Scheduler,
    pool: exchange_module.Pool,
    proxies: proxies_module.Proxies,
    notices: notices_module.Notices = .{},
    poller: Poller,
    crews: []Crew,
    crews_begun: std.atomic.Value(u32) = .init(0),
    /// Connections that workers give back to the poller, newest first.
    handed_back: std.atomic.Value(?*Connection) = .init(null),
    /// Suspensions that the application resumed, newest first; a reference each.
    resumed: std.atomic.Value(?*Suspension) = .init(null),
    /// The poller waits, or is about to, and must be woken for a connection handed back.
    waiting: std.atomic.Value(bool) = .init(false),
    drain_requested: std.atomic.Value(bool) = .init(false),
    /// The poller must hear of connections that become idle: it drains, or has no room for clients.
    wants_idle: std.atomic.Value(bool) = .init(false),
    /// There may be clients that take nothing, so that the poller has to look at them.
    watches_stalled: std.atomic.Value(bool) = .init(false),
    /// Workers that wait for such a client.
    writers: eviction.Writers,
    /// While it drains: until when the rest of a request is waited for (`monotonic_ms`).
    receive_by_ms: std.atomic.Value(u64) = .init(std.math.maxInt(u64)),
    /// Responses say that the connection will be closed.
    draining: std.atomic.Value(bool) = .init(false),
    outcome: std.atomic.Value(Outcome) = .init(.serving),
    /// The launcher waits for the outcome, and has nothing more to prepare.
    attended: std.Thread.ResetEvent = .{},
    /// Its reading end becomes readable with the outcome, and with a notice.
    outcome_pipe: [2]sys.Fd,
    metrics: metrics_module.Metrics,
    log: log_writer.LogWriter,
    rules: observer.Rules,
    /// Room for a line, for the poller and each worker.
    lines: []u8,
    /// Answers that clients have not taken yet.
    sending: in_flight.Sending = .{},
    /// Clients that were refused and have not gone yet; the poller writes.
    lingering: metrics_module.Counter = .{},
    /// Responses that wait for an event of the application; the poller writes.
    suspended: metrics_module.Counter = .{},
    start_time_seconds: u64,
    requests: std.atomic.Value(u64) = .init(0),
    /// Requests never begun, since their clients had gone.
    dropped: std.atomic.Value(u64) = .init(0),
    connection_count: std.atomic.Value(u32) = .init(0),
    health: Health = .{},
    /// For the launcher.
    overdue: overdue_module.Reports,

    /// Takes over the listeners' descriptors, which are bound, listening and non-blocking.
    pub fn create(
        gpa: std.mem.Allocator,
        options: Options,
        listeners: []const poller_module.ListenerOptions,
        application: Application,
    ) InitError!*Server {
        const self = try gpa.create(Server);
        errdefer gpa.destroy(self);
        var scheduler = try Scheduler.init(gpa, .{
            .threads = options.threads,
            .queue = options.queue,
            .queue_timeout_ms = options.queue_timeout_ms,
        }, self);
        errdefer scheduler.deinit(gpa);
        const crews = try gpa.alloc(Crew, scheduler.worker_count());
        errdefer gpa.free(crews);
        const reports = try gpa.alloc(overdue_module.Report, 2 * crews.len);
        errdefer gpa.free(reports);
        var proxies = try proxies_module.Proxies.init(
            gpa,
            options.proxy_trusted,
            options.proxy_headers,
            options.proxy_protocol,
        );
        errdefer proxies.deinit(gpa);
        var metrics = try metrics_module.Metrics.init(crews.len);
        errdefer metrics.deinit();
        const lines = try pages.alloc(u8, (crews.len + 1) * access_log.line_bytes_max);
        errdefer pages.free(lines);
        const outcome_pipe = try sys.socket_pair();
        errdefer for (outcome_pipe) |fd| sys.close(fd);
        self.* = .{
            .gpa = gpa,
            .options = options,
            .body_limits = options.body_limits(),
            .buffer_memory = .init(options.buffer_memory_bytes),
            .streams = .{ .max = options.threads / 2 },
            .application = application,
            .writers = .{ .context = self, .wake = watch_stalled },
            .scheduler = scheduler,
            .proxies = proxies,
            .pool = .{
                .gpa = gpa,
                .field_lines_max = options.fields,
                .id_prefix = request_ids.random_prefix(),
            },
            .poller = undefined,
            .crews = crews,
            .outcome_pipe = outcome_pipe,
            .metrics = metrics,
            .overdue = .{ .entries = reports },
            .log = undefined,
            .rules = options.rules(),
            .lines = lines,
            .start_time_seconds = sys.realtime_seconds(),
        };
        self.pool.buffer_memory = &self.buffer_memory;
        self.body_limits.streams = &self.streams;
        self.body_limits.receive_by_ms = &self.receive_by_ms;
        try self.log.init(gpa, options.log_options());
        errdefer self.log.deinit();
        self.poller = try Poller.init(self, listeners);
        errdefer self.poller.deinit();
        for (crews, 0..) |*crew, index| self.create_crew(crew, index);
        self.log.start() catch return error.Unexpected;
        self.scheduler.start() catch return error.Unexpected;
        return self;
    }

    /// The room for a log line of the poller (0) or of the worker before this number.
    pub fn line_of(self: *const Server, number: usize) []u8 {
        const size = access_log.line_bytes_max;
        return self.lines[number * size ..][0..size];
    }

    fn create_crew(self: *Server, crew: *Crew, index: usize) void {
        crew.* = .{
            .worker = .{ .index = @intCast(index) },
            .server = self,
            .reply = undefined,
            .lane = .{
                .shard = self.metrics.worker_shard(index),
                .line = self.line_of(index + 1),
            },
        };
        crew.reply = .init(
            self.gpa,
            self.options.reply_limits(),
            self.application.interlude,
            &self.draining,
        );
        if (self.limits_calls()) crew.reply.call = &crew.call;
        crew.reply.watch(&crew.lane.shard.bytes_sent, &crew.current.phase);
        crew.reply.pusher = .{ .context = self, .wake = wake_pusher };
        crew.reply.client_wait.writers = &self.writers;
        // Not `draining`, which begins with `drain_delay`.
        crew.reply.client_wait.is_draining = &self.drain_requested;
    }

    /// After every worker has returned.
    pub fn destroy(self: *Server) void {
        const gpa = self.gpa;
        self.scheduler.stop();
        self.scheduler.join();
        self.poller.deinit();
        self.scheduler.deinit(gpa);
        self.pool.deinit();
        self.drop_resumed();
        self.proxies.deinit(gpa);
        for (self.crews) |*crew| crew.reply.deinit();
        gpa.free(self.crews);
        for (self.outcome_pipe) |fd| sys.close(fd);
        self.log.deinit();
        self.metrics.deinit();
        gpa.free(self.overdue.entries);
        pages.free(self.lines);
        gpa.destroy(self);
    }

    /// Whether application calls have a time limit.
    pub fn limits_calls(self: *const Server) bool {
        return self.options.request_timeout_ms > 0;
    }

    pub fn worker_count(self: *const Server) u32 {
        return self.scheduler.worker_count();
    }

    /// The life of the worker thread of this number, which has the GIL before and after. Each
    /// number once.
    pub fn run_worker(self: *Server, number: u32) void {
        if (number >= self.crews.len) return;
        if (self.crews[number].has_begun.swap(true, .monotonic)) return;
        _ = self.crews_begun.fetchAdd(1, .monotonic);
        const worker = &self.crews[number].worker;
        // No worker needs the GIL to begin: the first request may keep it for long.
        self.detach(worker);
        worker.attached = false;
        // Requests may take all the memory there is, or the GIL: no launcher that is still starting
        // shall need them.
        self.attended.wait();
        self.scheduler.work(worker);
    }

    /// Accepts no more, answers what came and stops. Any thread; once is enough.
    pub fn drain(self: *Server) void {
        self.drain_requested.store(true, .release);
        self.poller.reactor.wake();
    }

    /// Ends as soon as the application calls in progress do. Any thread.
    pub fn stop(self: *Server) void {
        self.end(.stopped);
    }

    /// Ends the launcher's wait, for it to look at what is new. Any thread.
    pub fn tell_launcher(self: *Server) void {
        // A full pipe has told it already.
        _ = sys.send(self.outcome_pipe[1], "x") catch {};
    }

    /// In a process that was forked from the server's: there it can do nothing any more.
    pub fn close_in_child(self: *Server) void {
        self.poller.close_in_child();
        for (&self.outcome_pipe) |*fd| forks.close_for_good(fd);
    }

    /// The first outcome counts.
    pub fn end(self: *Server, outcome: Outcome) void {
        if (self.outcome.cmpxchgStrong(.serving, outcome, .acq_rel, .acquire) != null) return;
        self.scheduler.stop();
        self.poller.reactor.wake();
        self.attended.set();
        // The end of the stream is readable as well, and takes no memory to say.
        _ = sys.send(self.outcome_pipe[1], "x") catch sys.shutdown_send(self.outcome_pipe[1]);
    }

    /// Tells, once for each, of the fields that were left out of an application's response.
    pub fn note_dropped(self: *Server, head: *const ResponseHead) void {
        var dropped = head.dropped.iterator();
        while (dropped.next()) |field| self.notify(switch (field) {
            .connection => .connection_dropped,
            .keep_alive => .keep_alive_dropped,
            .proxy_connection => .proxy_connection_dropped,
        }, &sys.no_address);
    }

    /// Leaves word for the operator, once for each kind, and ends `wait` of the main thread for it.
    pub fn notify(
        self: *Server,
        kind: notices_module.Kind,
        address: *const sys.Address,
    ) void {
        if (forks.is_child()) return;
        if (self.notices.leave(kind, address)) self.tell_launcher();
    }

    /// Says that a drain will come: /readyz fails from here on. Any thread.
    pub fn announce_drain(self: *Server) void {
        self.health.leaving.store(true, .release);
        // Connections end one by one, in order, rather than all at once when the drain begins.
        self.draining.store(true, .release);
    }

    /// Why no requests should be sent here; null when they should.
    pub fn unready_reason(self: *Server) ?[]const u8 {
        if (self.health.is_leaving() or self.drain_requested.load(.acquire)) return "draining";
        if (self.outcome.load(.acquire) != .serving) return "the server has stopped";
        if (self.scheduler.pulse().is_full) return "the queue is full";
        return null;
    }

    pub fn counts(self: *Server) Counts {
        const scheduled = self.scheduler.counts();
        return .{
            .connections = self.connection_count.load(.monotonic),
            .requests = self.requests.load(.monotonic),
            .dropped = self.dropped.load(.monotonic),
            .running = scheduled.running,
            .queued = scheduled.ready,
            .parked = scheduled.parked,
            .shed = scheduled.shed,
            .steals = scheduled.steals,
        };
    }

    // ---- For who looks at the server -----------------------------------------------------------

    /// What is so now, for the metrics. Any thread.
    pub fn gauges(self: *Server) metrics_module.Gauges {
        const scheduled = self.scheduler.counts();
        const phases = self.scheduler.count_phases();
        const sending = self.sending.size();
        const in_use = self.pool.count_in_use();
        const total = self.connection_count.load(.monotonic);
        const lingering = self.lingering.get();
        const suspended = self.suspended.get();
        const resumed = scheduled.begun;
        const busy = scheduled.running + scheduled.ready;
        var found: metrics_module.Gauges = .{
            .queue_depth = scheduled.ready,
            .requests_in_flight = busy + sending,
            .threads_limit = self.options.threads,
            .queue_limit = self.options.queue,
            .connections_limit = self.options.connections,
            .buffer_memory_bytes = self.buffer_memory.total(),
            .buffer_memory_limit_bytes = self.buffer_memory.bytes_max,
            .saturation = @as(f64, @floatFromInt(busy)) /
                @as(f64, @floatFromInt(self.options.threads)),
            .draining = self.draining.load(.acquire),
            .log_lines_dropped = self.log.dropped.load(.monotonic),
            .start_time_seconds = self.start_time_seconds,
            .version = @import("build_options").version,
            .python = self.options.python_version,
            .zig = builtin.zig_version_string,
        };
        // The parts are counted one after the other, while they change.
        found.connections = .init(.{
            .idle = total -| in_use -| lingering,
            .reading = in_use -| busy -| sending,
            .queued = scheduled.ready + resumed,
            .running = scheduled.running,
            .writing = sending -| suspended -| resumed,
            .suspended = suspended,
            .lingering = lingering,
        });
        found.threads = .init(.{
            .idle = phases.get(.parked) + phases.get(.between),
            .polling = phases.get(.polling),
            .attaching = phases.get(.attaching),
            .running = phases.get(.running),
        });
        return found;
    }

    /// Copies what is known of the requests that run, are queued, or are being sent or parked, as
    /// far as the buffer goes. Returns how many. Any thread; no worker is stopped.
    pub fn snapshot_requests(self: *Server, buffer: []in_flight.RequestInfo) usize {
        const now_ns = sys.monotonic_ns();
        var count: usize = 0;
        for (self.crews, 0..) |*crew, index| {
            if (count == buffer.len) return count;
            if (!crew.current.read(&buffer[count], &self.pool.id_prefix, now_ns)) continue;
            buffer[count].thread = @intCast(index);
            count += 1;
        }
        count += self.sending.read(buffer[count..], now_ns);
        var rest: QueueLook = .{ .buffer = buffer[count..], .now_ns = now_ns };
        self.scheduler.look_at_queue(&rest, QueueLook.see);
        return count + rest.count;
    }

    const QueueLook = struct {
        buffer: []in_flight.RequestInfo,
        now_ns: u64,
        count: usize = 0,

        fn see(self: *QueueLook, connection: *Connection) bool {
            if (self.count == self.buffer.len) return false;
            self.buffer[self.count].read(connection, self.now_ns);
            self.buffer[self.count].phase = .queue;
            self.count += 1;
            return true;
        }
    };

    /// Lets a suspended response go on. Any thread, any time, even after the request has ended.
    pub fn resume_suspended(self: *Server, suspension: *Suspension) void {
        if (forks.is_child() or !suspension.begin_resume()) return;
        _ = suspension.retain();
        var first = self.resumed.load(.monotonic);
        while (true) {
            suspension.next = first;
            const seen = self.resumed.cmpxchgWeak(first, suspension, .seq_cst, .monotonic);
            first = seen orelse break;
        }
        self.wake_waiting_poller();
    }

    /// Reads from the body of a request whose response is parked, for another thread of the
    /// application, which has the GIL. The poller leaves the body and the socket's receiving side
    /// alone meanwhile, and the request does not end before its `InputStream` is free. `NotAsked`:
    /// the client waits for 100 (Continue), which must not come in the middle of what the poller
    /// sends.
    pub fn read_parked_body(
        self: *Server,
        connection: *Connection,
        destination: []u8,
    ) (error{NotAsked} || body_module.ReadError)!usize {
        const body = &connection.exchange.?.body;
        const body_error = &connection.exchange.?.record.body_error;
        if (body_error.*) |err| return err;
        if (body.mode == .streamed and !body.complete) {
            if (body.continue_due) return error.NotAsked;
        }
        const interlude = self.application.interlude;
        return body.read(connection.fd, destination, &self.body_limits, interlude) catch |err| {
            // The rest of the record is the poller's now.
            body_error.* = err;
            return err;
        };
    }

    fn drop_resumed(self: *Server) void {
        var first = self.resumed.swap(null, .acquire);
        while (first) |suspension| {
            first = suspension.next;
            suspension.release(self.gpa);
        }
    }

    // ---- The scheduler's host ------------------------------------------------------------------

    pub fn attach(self: *Server, worker: *Worker) void {
        const crew: *Crew = @fieldParentPtr("worker", worker);
        self.application.interlude.enter(crew.thread_state);
        crew.thread_state = null;
    }

    pub fn detach(self: *Server, worker: *Worker) void {
        const crew: *Crew = @fieldParentPtr("worker", worker);
        crew.thread_state = self.application.interlude.leave();
    }

    pub fn poll(self: *Server, _: *Worker, may_wait: bool) void {
        self.poller.poll(may_wait);
    }

    fn wake_pusher(context: *anyopaque) void {
        const self: *Server = @ptrCast(@alignCast(context));
        self.scheduler.wake_monitor();
    }

    /// A client stalls: the poller looks at it within a second, even if nothing else happens.
    fn watch_stalled(context: *anyopaque) void {
        const self: *Server = @ptrCast(@alignCast(context));
        if (!self.watches_stalled.swap(true, .seq_cst)) self.wake_waiting_poller();
    }

    /// What the client has not taken is the poller's to send; before it gets the connection.
    fn begin_stall(self: *Server, connection: *Connection) void {
        const now_ms = sys.monotonic_ms();
        connection.deadline_ms = now_ms + self.options.write_timeout_ms;
        connection.stall.begin(connection.fd, now_ms);
    }

    /// The monitor's: sends what responses in progress hold back. Whether there was any.
    pub fn on_tick(self: *Server) bool {
        var found = false;
        for (self.crews) |*crew| {
            if (crew.reply.tick()) found = true;
        }
        return found;
    }

    pub fn wake_poller(self: *Server) void {
        self.poller.reactor.wake();
    }

    /// Answers a request or goes on with its answer, on a worker that has the GIL.
    pub fn run(self: *Server, worker: *Worker, connection: *Connection) void {
        const crew: *Crew = @fieldParentPtr("worker", worker);
        const exchange = connection.exchange.?;
        connection.state = .running;
        crew.connection = connection;
        crew.exchange = exchange;
        connection.active_ns = worker.started_ns;
        const timing = &exchange.record.timing;
        if (exchange.continuation) |continuation| {
            exchange.continuation = null;
            timing.pass_wait(worker.attach_ns, worker.attached_ns, worker.started_ns);
            self.sending.remove(exchange);
            exchange.record.thread = worker.index;
            crew.current.set(connection, exchange);
            crew.reply.proceed(connection, exchange);
            // A response that was suspended may not have begun yet.
            const is_speaking = crew.reply.progress.head_sent or !exchange.output.is_empty();
            if (self.limits_calls()) crew.call.begin(connection, is_speaking, sys.monotonic_ms());
            self.application.proceed(self.application.context, crew, continuation);
        } else if (self.has_left(worker, connection)) {
            timing.pass_wait(worker.attach_ns, worker.attached_ns, worker.started_ns);
            _ = self.dropped.fetchAdd(1, .monotonic);
            // In case that only the sending side was closed.
            self.refuse(connection, .{
                .status = 503,
                .reason = "client_gone",
                .retry_after = 1,
            }, &crew.reply.date, &crew.lane);
            return self.hand_back(connection);
        } else {
            timing.pass_wait(worker.attach_ns, worker.attached_ns, worker.started_ns);
            exchange.record.thread = worker.index;
            crew.current.set(connection, exchange);
            connection.requests +|= 1;
            const limit = self.options.requests_per_connection;
            const may_persist = limit == 0 or connection.requests < limit;
            crew.reply.begin(connection, exchange, may_persist);
            if (self.limits_calls()) crew.call.begin(connection, false, sys.monotonic_ms());
            self.application.handle(self.application.context, crew);
        }
        crew.reply.leave();
        worker.ended_ns = sys.monotonic_ns();
        timing.pass(.app, worker.ended_ns);
        const is_taken = self.limits_calls() and crew.call.end();
        crew.current.clear();
        if (is_taken) return self.release_taken(connection, crew);
        if (exchange.continuation != null) {
            if (connection.worker) |bound| self.scheduler.bind(bound);
            return self.release_parked(connection);
        }
        self.count_answered();
        self.release(connection, crew);
    }

    /// Whether nobody waits for the answer to a request that has not begun. A client that only
    /// closed its sending side may still wait; after a while in the queue it is taken for gone.
    fn has_left(_: *const Server, worker: *const Worker, connection: *const Connection) bool {
        const seen = connection.turn.load(.acquire);
        if (seen & Turn.broken != 0) return true;
        const has_hung_up = connection.hangup or seen & Turn.hangup != 0;
        return has_hung_up and worker.queued_ns >= patience_ns;
    }

    pub fn shed(self: *Server, worker: *Worker, connection: *Connection) void {
        const crew: *Crew = @fieldParentPtr("worker", worker);
        const timing = &connection.exchange.?.record.timing;
        timing.pass_wait(worker.attach_ns, worker.attached_ns, sys.monotonic_ns());
        self.refuse(connection, .{
            .status = 503,
            .reason = "queue_timeout",
            .retry_after = 1,
        }, &crew.reply.date, &crew.lane);
        self.hand_back(connection);
    }

    // ---- The end of a request ------------------------------------------------------------------

    /// Gives the connection on: to the poller without a word when nothing is left to do, else by
    /// the hand-back list.
    fn release(self: *Server, connection: *Connection, crew: *Crew) void {
        const exchange = connection.exchange.?;
        const progress = &crew.reply.progress;
        connection.worker = null;
        // What is pinned goes with the application's object; only a parked response keeps that. A
        // file goes with its response.
        const output = &exchange.output;
        if (progress.broken or output.pinned.len > 0 or output.file.remaining > 0) {
            connection.state = .closing;
            return self.hand_back(connection);
        }
        const after: connection_module.After = if (progress.must_close) .close else .keep;
        connection.after = after;
        const is_sent = exchange.output.is_empty();
        if (is_sent) observer.finish(self, &crew.lane, connection);
        if (!is_sent) {
            self.sending.add(connection, .write);
            connection.state = .writing;
            self.begin_stall(connection);
        } else if (after == .keep and !exchange.has_more() and !connection.unread) {
            self.pool.release(exchange);
            connection.exchange = null;
            connection.state = .reading_head;
            connection.deadline_ms = sys.monotonic_ms() + self.options.keep_alive_timeout_ms;
        } else {
            connection.state = .writing; // with nothing to write: the poller does what comes after
            return self.hand_back(connection);
        }
        self.give_up_turn(connection);
        // After it, so that the poller, who looks at the turns, sees this one or is told.
        if (!is_sent) watch_stalled(self);
    }

    /// The poller has answered for the application, whose output was dropped.
    fn release_taken(self: *Server, connection: *Connection, crew: *Crew) void {
        const exchange = connection.exchange.?;
        const record = &exchange.record;
        record.status = overdue_module.status;
        record.client_gone = false;
        const sent = crew.call.sent_of_answer();
        record.bytes_sent += sent.bytes;
        record.head_bytes_sent += sent.head_bytes;
        if (exchange.continuation != null) {
            // Suspended all the same: the poller resumes it for its end.
            if (connection.worker) |bound| self.scheduler.bind(bound);
            connection.state = .closing;
            return self.hand_back(connection);
        }
        connection.worker = null;
        observer.finish(self, &crew.lane, connection);
        self.count_answered();
        // Nothing else was sent, or kept to be sent.
        connection.state = if (exchange.output.is_empty()) .writing else .closing;
        connection.after = .close;
        self.hand_back(connection);
    }

    pub fn count_answered(self: *Server) void {
        const before = self.requests.fetchAdd(1, .monotonic);
        if (before +% 1 == self.options.requests_limit) self.tell_launcher();
    }

    /// The poller sends what the producer is ahead of its client, then lets it proceed.
    fn release_parked(self: *Server, connection: *Connection) void {
        connection.state = .writing;
        connection.after = .proceed;
        self.sending.add(connection, .write);
        // Only the poller can begin a wait that may be shorter than the heap's entry.
        if (connection.exchange.?.suspension != null) return self.hand_back(connection);
        self.begin_stall(connection);
        // The socket need not be full: no event may tell of it.
        if (connection.exchange.?.output.file.remaining > 0) return self.hand_back(connection);
        self.give_up_turn(connection);
        watch_stalled(self);
    }

    /// From here the connection may be the poller's. If the poller saw something while it was the
    /// worker's, no new event will tell of it.
    fn give_up_turn(self: *Server, connection: *Connection) void {
        if (connection.turn.cmpxchgStrong(Turn.worker, 0, .seq_cst, .acquire) != null) {
            self.hand_back(connection);
        } else if (self.wants_idle.load(.seq_cst)) {
            // The poller waits for connections that become idle. It sets the flag before it looks
            // at the turns, this is the other order: one of the two sees the other's write.
            self.poller.reactor.wake();
        }
    }

    /// Puts the connection on the list that the poller takes from. Its owner; any thread.
    pub fn hand_back(self: *Server, connection: *Connection) void {
        var first = self.handed_back.load(.monotonic);
        while (true) {
            connection.next_handed_back = first;
            const seen = self.handed_back.cmpxchgWeak(first, connection, .seq_cst, .monotonic);
            first = seen orelse break;
        }
        self.wake_waiting_poller();
    }

    /// After putting something on a list of the poller's. The poller sets `waiting` and then looks
    /// at the lists; this is the other order, so one of the two sees the other's write.
    fn wake_waiting_poller(self: *Server) void {
        if (self.waiting.load(.seq_cst) and self.waiting.swap(false, .seq_cst)) {
            self.poller.reactor.wake();
        }
    }

    /// Answers a health check on a main listener. The poller.
    pub fn answer_probe(
        self: *Server,
        connection: *Connection,
        probe: health_module.Probe,
        date: *date_module.Date,
    ) void {
        const reason: ?[]const u8 = switch (probe) {
            .livez => if (self.health.stalled_ms.load(.acquire) > 0) "stalled" else null,
            .readyz => self.unready_reason(),
        };
        var buffer: [refusal_module.bytes_max]u8 = undefined;
        const answer: refusal_module.Refusal = .{
            .status = if (reason == null) 200 else 503,
            .reason = reason orelse @tagName(probe),
            .without_body = connection.exchange.?.is_head_request(),
        };
        const text = refusal_module.write(&buffer, answer, date.at(sys.realtime_seconds()));
        // It is none of the requests that are counted and logged.
        connection.exchange.?.record.number = 0;
        connection.state = .writing;
        connection.after = .close;
        const sent = sys.send(connection.fd, text) catch 0;
        if (sent < text.len) connection.state = .closing;
    }

    /// Writes an answer of the server's own; the connection lingers and closes after it. Whoever
    /// owns the connection; a worker hands it back then.
    pub fn refuse(
        self: *Server,
        connection: *Connection,
        refusal: refusal_module.Refusal,
        date: *date_module.Date,
        lane: *observer.Lane,
    ) void {
        var buffer: [refusal_module.bytes_max]u8 = undefined;
        var own = refusal;
        if (connection.exchange) |exchange| {
            own.without_body = exchange.is_head_request();
            own.request_id = exchange.request_id();
            exchange.record.status = refusal.status;
            exchange.record.reason = reasons.of(refusal.reason);
        }
        const text = refusal_module.write(&buffer, own, date.at(sys.realtime_seconds()));
        connection.state = .writing;
        connection.after = .close;
        const exchange = connection.exchange orelse {
            // Without an exchange there is nowhere to keep what the socket does not take now.
            observer.turn_away(self, lane, connection, refusal.reason);
            _ = sys.send(connection.fd, text) catch {};
            return;
        };
        var sent: usize = 0;
        if (exchange.output.is_empty()) {
            sent = sys.send(connection.fd, text) catch |err| switch (err) {
                error.WouldBlock => 0,
                error.OutOfMemory, error.ConnectionGone, error.Unexpected => {
                    connection.state = .closing;
                    exchange.record.client_gone = true;
                    return;
                },
            };
        }
        exchange.record.bytes_sent += sent;
        lane.shard.bytes_sent.add(sent);
        exchange.record.head_bytes_sent += std.mem.indexOf(u8, text, "\r\n\r\n").? + 4;
        if (sent == text.len) return;
        self.sending.add(connection, .write);
        exchange.output.append(self.gpa, text[sent..]) catch {
            connection.state = .closing;
        };
    }
};
