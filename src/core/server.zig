//! The server: what all threads share, how it starts and ends, and a worker's way through a
//! request.
//!
//! `Server` is the scheduler's host. The baton's holder runs `poll`, which is all of poller.zig;
//! any worker runs `run`. The poller's own data is in `poller`; what threads share is atomic or has
//! a lock of its own. The application is behind `Application`, so that the whole server is tested
//! without Python.

const std = @import("std");
const sys = @import("sys.zig");
const date_module = @import("date.zig");
const refusal_module = @import("refusal.zig");
const body_module = @import("body.zig");
const request_head = @import("request_head.zig");
const scheduler_module = @import("scheduler.zig");
const reply_module = @import("reply.zig");
const exchange_module = @import("exchange.zig");
const connection_module = @import("connection.zig");
const poller_module = @import("poller.zig");
const Poller = poller_module.Poller;
const health_module = @import("health.zig");
const Health = health_module.Health;
const Connection = connection_module.Connection;
const Exchange = exchange_module.Exchange;
const Reply = reply_module.Reply;
const Turn = connection_module.Turn;
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
    head_timeout_ms: u64 = 10_000,
    body_timeout_ms: u64 = 30_000,
    keep_alive_timeout_ms: u64 = 75_000,
    write_timeout_ms: u64 = 30_000,
    drain_timeout_ms: u64 = 30_000,
    /// Where request bodies beyond `body_memory_bytes` go.
    temporary_directory: []const u8 = "/tmp",
    /// After so many requests the launcher is told; 0: never.
    requests_limit: u64 = 0,
    /// The path prefix under which the poller answers livez and readyz; empty: none.
    in_band: []const u8 = "",

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
        };
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
    server: *Server,
    reply: Reply,
    /// The request being answered.
    connection: *Connection = undefined,
    exchange: *Exchange = undefined,
    /// What the thread must show to get the GIL back; while it is detached.
    thread_state: ?*anyopaque = null,

    pub fn read_body(self: *Crew, destination: []u8) body_module.ReadError!usize {
        const exchange = self.exchange;
        var limits = self.server.body_limits;
        const by_ms = self.server.receive_by_ms.load(.acquire);
        if (by_ms != std.math.maxInt(u64)) {
            limits.timeout_ms = @min(limits.timeout_ms, by_ms -| sys.monotonic_ms());
        }
        const fd = self.connection.fd;
        const interlude = self.server.application.interlude;
        return exchange.body.read(exchange, fd, destination, &limits, interlude);
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
const patience_ns = std.time.ns_per_s;

pub const InitError = error{ OutOfMemory, Unexpected };

pub const Server = struct {
    pub const Task = Connection;
    pub const Scheduler = scheduler_module.Scheduler(Server);

    gpa: std.mem.Allocator,
    options: Options,
    body_limits: body_module.Limits,
    application: Application,
    scheduler: Scheduler,
    pool: exchange_module.Pool,
    poller: Poller,
    crews: []Crew,
    crews_begun: std.atomic.Value(u32) = .init(0),
    /// Connections that workers give back to the poller, newest first.
    handed_back: std.atomic.Value(?*Connection) = .init(null),
    /// The poller waits, or is about to, and must be woken for a connection handed back.
    waiting: std.atomic.Value(bool) = .init(false),
    drain_requested: std.atomic.Value(bool) = .init(false),
    /// The poller must hear of connections that become idle: it drains, or has no room for clients.
    wants_idle: std.atomic.Value(bool) = .init(false),
    /// While it drains: until when the rest of a request is waited for (`monotonic_ms`).
    receive_by_ms: std.atomic.Value(u64) = .init(std.math.maxInt(u64)),
    /// Responses say that the connection will be closed.
    draining: std.atomic.Value(bool) = .init(false),
    outcome: std.atomic.Value(Outcome) = .init(.serving),
    /// Its reading end becomes readable with the outcome.
    outcome_pipe: [2]sys.Fd,
    requests: std.atomic.Value(u64) = .init(0),
    /// Requests never begun, since their clients had gone.
    dropped: std.atomic.Value(u64) = .init(0),
    connection_count: std.atomic.Value(u32) = .init(0),
    health: Health = .{},

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
        const outcome_pipe = try sys.socket_pair();
        errdefer for (outcome_pipe) |fd| sys.close(fd);
        self.* = .{
            .gpa = gpa,
            .options = options,
            .body_limits = options.body_limits(),
            .application = application,
            .scheduler = scheduler,
            .pool = .{ .gpa = gpa, .field_lines_max = options.fields },
            .poller = undefined,
            .crews = crews,
            .outcome_pipe = outcome_pipe,
        };
        self.poller = try Poller.init(self, listeners);
        errdefer self.poller.deinit();
        for (crews, 0..) |*crew, index| {
            crew.* = .{
                .worker = .{ .index = @intCast(index) },
                .server = self,
                .reply = undefined,
            };
            crew.reply = .init(
                gpa,
                options.reply_limits(),
                application.interlude,
                &self.draining,
            );
        }
        self.scheduler.start() catch return error.Unexpected;
        return self;
    }

    /// After every worker has returned.
    pub fn destroy(self: *Server) void {
        const gpa = self.gpa;
        self.scheduler.stop();
        self.scheduler.join();
        self.poller.deinit();
        self.scheduler.deinit(gpa);
        self.pool.deinit();
        for (self.crews) |*crew| crew.reply.deinit();
        gpa.free(self.crews);
        for (self.outcome_pipe) |fd| sys.close(fd);
        gpa.destroy(self);
    }

    pub fn worker_count(self: *const Server) u32 {
        return self.scheduler.worker_count();
    }

    /// The life of a worker thread, which has the GIL before and after. Returns at once when all
    /// workers that there may be have begun.
    pub fn run_worker(self: *Server) void {
        const index = self.crews_begun.fetchAdd(1, .monotonic);
        if (index >= self.crews.len) return;
        self.scheduler.work(&self.crews[index].worker);
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

    /// The first outcome counts.
    pub fn end(self: *Server, outcome: Outcome) void {
        if (self.outcome.cmpxchgStrong(.serving, outcome, .acq_rel, .acquire) != null) return;
        self.scheduler.stop();
        self.poller.reactor.wake();
        self.tell_launcher();
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

    pub fn poll(self: *Server, _: *Worker) void {
        self.poller.poll();
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
        if (exchange.continuation) |continuation| {
            exchange.continuation = null;
            crew.reply.proceed(connection, exchange);
            self.application.proceed(self.application.context, crew, continuation);
        } else if (self.has_left(worker, connection)) {
            _ = self.dropped.fetchAdd(1, .monotonic);
            // In case that only the sending side was closed.
            self.refuse(connection, .{
                .status = 503,
                .reason = "client_gone",
                .retry_after = 1,
            }, &crew.reply.date);
            return self.hand_back(connection);
        } else {
            connection.requests +|= 1;
            const limit = self.options.requests_per_connection;
            const may_persist = limit == 0 or connection.requests < limit;
            crew.reply.begin(connection, exchange, may_persist);
            self.application.handle(self.application.context, crew);
        }
        if (exchange.continuation != null) {
            if (connection.worker) |bound| self.scheduler.bind(bound);
            return self.release_parked(connection);
        }
        const before = self.requests.fetchAdd(1, .monotonic);
        if (before +% 1 == self.options.requests_limit) self.tell_launcher();
        self.release(connection, &crew.reply);
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
        self.refuse(connection, .{
            .status = 503,
            .reason = "queue_timeout",
            .retry_after = 1,
        }, &crew.reply.date);
        self.hand_back(connection);
    }

    // ---- The end of a request ------------------------------------------------------------------

    /// Gives the connection on: to the poller without a word when nothing is left to do, else by
    /// the hand-back list.
    fn release(self: *Server, connection: *Connection, reply: *Reply) void {
        const exchange = connection.exchange.?;
        const progress = &reply.progress;
        connection.worker = null;
        // What is pinned goes with the application's object; only a parked response keeps that.
        if (progress.broken or exchange.output.pinned.len > 0) {
            connection.state = .closing;
            return self.hand_back(connection);
        }
        const after: connection_module.After = if (progress.must_close) .close else .keep;
        connection.after = after;
        if (!exchange.output.is_empty()) {
            connection.state = .writing;
            connection.deadline_ms = sys.monotonic_ms() + self.options.write_timeout_ms;
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
    }

    /// The poller sends what the producer is ahead of its client, then lets it proceed.
    fn release_parked(self: *Server, connection: *Connection) void {
        connection.state = .writing;
        connection.after = .proceed;
        connection.deadline_ms = sys.monotonic_ms() + self.options.write_timeout_ms;
        self.give_up_turn(connection);
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
        // The poller sets `waiting` and then looks at the list; this is the other order, so one of
        // the two sees the other's write.
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
        const now = date.at(sys.realtime_seconds());
        self.send_whole(connection, refusal_module.write(&buffer, answer, now));
    }

    /// Writes an answer of the server's own; the connection lingers and closes after it. Whoever
    /// owns the connection; a worker hands it back then.
    pub fn refuse(
        self: *Server,
        connection: *Connection,
        refusal: refusal_module.Refusal,
        date: *date_module.Date,
    ) void {
        var buffer: [refusal_module.bytes_max]u8 = undefined;
        var own = refusal;
        if (connection.exchange) |exchange| own.without_body = exchange.is_head_request();
        const text = refusal_module.write(&buffer, own, date.at(sys.realtime_seconds()));
        self.send_whole(connection, text);
    }

    /// Sends a whole response that is none of the application's, after which the connection
    /// closes.
    fn send_whole(self: *Server, connection: *Connection, text: []const u8) void {
        connection.state = .writing;
        connection.after = .close;
        const exchange = connection.exchange orelse {
            // Without an exchange there is nowhere to keep what the socket does not take now.
            _ = sys.send(connection.fd, text) catch {};
            return;
        };
        var sent: usize = 0;
        if (exchange.output.is_empty()) {
            sent = sys.send(connection.fd, text) catch |err| switch (err) {
                error.WouldBlock => 0,
                error.OutOfMemory, error.ConnectionGone, error.Unexpected => {
                    connection.state = .closing;
                    return;
                },
            };
        }
        if (sent == text.len) return;
        exchange.output.append(self.gpa, text[sent..]) catch {
            connection.state = .closing;
        };
    }
};
