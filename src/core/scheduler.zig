//! Decides which thread polls and which thread runs which request; nobody configures it.
//!
//! All workers are alike. One at a time holds the baton, the right to poll. It polls without the
//! GIL, fills the ready queue and runs the queue itself, so that a fast handler costs no hand-off.
//! Three things keep a slow handler from stopping the others:
//!
//! - Before a call that the predictor expects to be slow, the holder gives the baton away.
//! - The monitor, a thread without Python, looks every tick whether anything was begun or finished.
//!   If not while the holder is inside a call (or waits for the GIL), it takes the baton from it.
//! - Requests not begun are in the one ready queue. A worker takes one only when it has the GIL, so
//!   that none is trapped behind a thread that waits; at most one worker waits for the GIL at a time.
//!
//! A worker without work parks; the one that parked last is woken first, so that thread-local
//! resources of the application stay as few as the load needs. All state is under `mutex`, which is
//! never held during a system call (but the futex's own), a poll, an application call or a wait for
//! the GIL. `Host` brings what the scheduler does not know (see `Server`, and the fake in the tests):
//!
//!     Task                          a request, with a field `route`
//!     run(*Host, *Worker, *Task)    calls the application; attached
//!     shed(*Host, *Worker, *Task)   answers 503: waited longer than `queue_timeout_ms`
//!     poll(*Host, *Worker)          waits for events and submits tasks; detached
//!     attach, detach(*Host, *Worker)  takes and gives back the GIL

const std = @import("std");
const sys = @import("sys.zig");
const predictor_module = @import("predictor.zig");
const Predictor = predictor_module.Predictor;
const Futex = std.Thread.Futex;

/// The monitor's period, and the time from which a call counts as slow.
pub const tick_ns = 500 * std.time.ns_per_us;
/// Ticks without anything to watch after which the monitor sleeps until it is needed.
const idle_ticks_max = 8;

pub const Options = struct {
    /// Most application calls at once.
    threads: u32,
    /// Requests that may wait beyond those that a free thread will take.
    queue: u32,
    queue_timeout_ms: u64,
};

pub const Worker = struct {
    index: u32,
    /// Whether this thread has the GIL. Own thread only.
    attached: bool = true,
    phase: Phase = .between,
    /// When the call in progress began (`monotonic_ns`).
    started_ns: u64 = 0,
    route: predictor_module.Route = 0,
    /// 1 when a parked worker shall go on.
    signal: std.atomic.Value(u32) = .init(0),
    next_parked: ?*Worker = null,
};

/// What a worker does, as far as the scheduler must know. Under the mutex.
pub const Phase = enum { between, attaching, running, polling, parked };

pub const Counts = struct { running: u32, ready: u32, parked: u32, shed: u64, steals: u64 };

pub fn Scheduler(comptime Host: type) type {
    return struct {
        const Self = @This();
        const Task = Host.Task;
        const Entry = struct { task: *Task, since_ms: u64 };
        const Step = union(enum) { run: *Task, shed: *Task, attach, poll, stop };

        options: Options,
        host: *Host,
        mutex: std.Thread.Mutex = .{},
        ready: []Entry,
        ready_head: usize = 0,
        ready_count: usize = 0,
        /// The one that may poll; null while it waits for somebody to take it.
        holder: ?*Worker = null,
        parked: ?*Worker = null,
        parked_count: u32 = 0,
        running: u32 = 0,
        attaching: u32 = 0,
        stopping: bool = false,
        predictor: Predictor = .{},
        /// Counts calls begun and ended; the monitor sees by it that nothing moves.
        progress: u64 = 0,
        shed_count: u64 = 0,
        steals: u64 = 0,
        monitor: Monitor = .{},

        const Monitor = struct {
            thread: ?std.Thread = null,
            asleep: bool = false,
            /// 1 while the monitor should tick; what it sleeps on.
            signal: std.atomic.Value(u32) = .init(1),
            progress_seen: u64 = 0,
            idle_ticks: u32 = 0,
        };

        pub fn init(
            gpa: std.mem.Allocator,
            options: Options,
            host: *Host,
        ) error{OutOfMemory}!Self {
            const capacity = @as(usize, options.queue) + options.threads;
            const ready = try gpa.alloc(Entry, capacity);
            return .{ .options = options, .host = host, .ready = ready };
        }

        pub fn deinit(self: *Self, gpa: std.mem.Allocator) void {
            gpa.free(self.ready);
        }

        /// One more than may run the application: one can always poll.
        pub fn worker_count(self: *const Self) u32 {
            return self.options.threads + 1;
        }

        /// Starts the monitor; before the first worker.
        pub fn start(self: *Self) std.Thread.SpawnError!void {
            const config: std.Thread.SpawnConfig = .{ .stack_size = 256 * 1024 };
            self.monitor.thread = try std.Thread.spawn(config, run_monitor, .{self});
        }

        /// After the last worker has returned.
        pub fn join(self: *Self) void {
            if (self.monitor.thread) |thread| thread.join();
            self.monitor.thread = null;
        }

        /// Makes every worker return once its application call has. Any thread.
        pub fn stop(self: *Self) void {
            self.mutex.lock();
            self.stopping = true;
            var woken = self.parked;
            self.parked = null;
            self.parked_count = 0;
            self.monitor.asleep = false;
            self.mutex.unlock();
            while (woken) |worker| {
                // The worker may return, and its memory be gone, as soon as it is signalled.
                woken = worker.next_parked;
                wake(worker);
            }
            self.monitor.signal.store(1, .release);
            Futex.wake(&self.monitor.signal, 1);
        }

        /// A worker's life; returns when the server stops. The thread has the GIL before and after.
        pub fn work(self: *Self, worker: *Worker) void {
            worker.attached = true;
            while (true) switch (self.next(worker)) {
                .run => |task| self.host.run(worker, task),
                .shed => |task| self.host.shed(worker, task),
                .attach => self.attach(worker),
                .poll => self.host.poll(worker),
                .stop => break,
            };
            if (!worker.attached) self.attach(worker);
        }

        fn attach(self: *Self, worker: *Worker) void {
            self.host.attach(worker);
            worker.attached = true;
        }

        fn detach(self: *Self, worker: *Worker) void {
            worker.attached = false;
            self.host.detach(worker);
        }

        /// Queues what the poller has read. Returns how many were taken; the others find the queue
        /// full. The poller only.
        pub fn submit(self: *Self, tasks: []const *Task, now_ms: u64) usize {
            self.mutex.lock();
            defer self.mutex.unlock();
            const free_threads = self.options.threads - self.running;
            const room = self.options.queue + free_threads -| self.ready_count;
            const taken = @min(room, tasks.len);
            for (tasks[0..taken]) |task| {
                const slot = (self.ready_head + self.ready_count) % self.ready.len;
                self.ready[slot] = .{ .task = task, .since_ms = now_ms };
                self.ready_count += 1;
            }
            return taken;
        }

        /// Takes out the request that has waited longest, if that is too long. The poller only.
        pub fn take_expired(self: *Self, now_ms: u64) ?*Task {
            self.mutex.lock();
            defer self.mutex.unlock();
            if (self.ready_count == 0 or !self.is_expired(now_ms)) return null;
            self.shed_count += 1;
            return self.pop();
        }

        /// When the request that waits longest will have waited too long.
        pub fn next_expiry_ms(self: *Self) ?u64 {
            self.mutex.lock();
            defer self.mutex.unlock();
            if (self.ready_count == 0) return null;
            return self.ready[self.ready_head].since_ms +| self.options.queue_timeout_ms;
        }

        pub fn counts(self: *Self) Counts {
            self.mutex.lock();
            defer self.mutex.unlock();
            return .{
                .running = self.running,
                .ready = @intCast(self.ready_count),
                .parked = self.parked_count,
                .shed = self.shed_count,
                .steals = self.steals,
            };
        }

        fn is_expired(self: *const Self, now_ms: u64) bool {
            return self.ready[self.ready_head].since_ms +| self.options.queue_timeout_ms <= now_ms;
        }

        fn pop(self: *Self) *Task {
            const task = self.ready[self.ready_head].task;
            self.ready_head = (self.ready_head + 1) % self.ready.len;
            self.ready_count -= 1;
            return task;
        }

        /// Ends the step that the worker did and chooses the next; parks in between if it must.
        fn next(self: *Self, worker: *Worker) Step {
            const now_ns = sys.monotonic_ns();
            self.mutex.lock();
            self.end_step(worker, now_ns);
            while (!self.stopping) {
                if (self.holder == null) self.holder = worker;
                if (self.ready_count > 0 and self.running < self.options.threads) {
                    if (worker.attached) return self.begin_call(worker, now_ns);
                    if (self.attaching == 0) return self.begin_attach(worker);
                }
                if (worker.attached) {
                    self.mutex.unlock();
                    self.detach(worker);
                    self.mutex.lock();
                } else if (self.holder == worker) {
                    worker.phase = .polling;
                    self.mutex.unlock();
                    return .poll;
                } else {
                    self.park(worker);
                }
            }
            if (self.holder == worker) self.holder = null;
            self.mutex.unlock();
            return .stop;
        }

        fn end_step(self: *Self, worker: *Worker, now_ns: u64) void {
            switch (worker.phase) {
                .running => {
                    self.running -= 1;
                    self.progress += 1;
                    self.predictor.learn(worker.route, now_ns -| worker.started_ns >= tick_ns);
                },
                .attaching => self.attaching -= 1,
                .between, .polling => {},
                .parked => unreachable, // `park` sets the phase back before it returns
            }
            worker.phase = .between;
        }

        /// Takes the first request, and gives the baton away if the call looks slow. Unlocks.
        fn begin_call(self: *Self, worker: *Worker, now_ns: u64) Step {
            const expired = self.is_expired(now_ns / std.time.ns_per_ms);
            const task = self.pop();
            if (expired) {
                self.shed_count += 1;
                self.mutex.unlock();
                return .{ .shed = task };
            }
            worker.phase = .running;
            worker.started_ns = now_ns;
            worker.route = task.route;
            self.running += 1;
            self.progress += 1;
            var successor: ?*Worker = null;
            if (self.predictor.expects_slow(task.route)) {
                if (self.holder == worker) {
                    self.holder = null;
                    successor = self.unpark();
                } else if (self.ready_count > 0 and self.attaching == 0) {
                    successor = self.unpark();
                }
            }
            self.unlock_watched();
            if (successor) |other| wake(other);
            return .{ .run = task };
        }

        fn begin_attach(self: *Self, worker: *Worker) Step {
            worker.phase = .attaching;
            self.attaching += 1;
            self.unlock_watched();
            return .attach;
        }

        /// Unlocks with the monitor awake, since a call is about to begin or the GIL to be waited for.
        fn unlock_watched(self: *Self) void {
            const asleep = self.monitor.asleep;
            self.monitor.asleep = false;
            self.mutex.unlock();
            if (!asleep) return;
            self.monitor.signal.store(1, .release);
            Futex.wake(&self.monitor.signal, 1);
        }

        /// Waits, unlocked, until another worker or the monitor wants this one.
        fn park(self: *Self, worker: *Worker) void {
            worker.phase = .parked;
            worker.signal.store(0, .monotonic);
            worker.next_parked = self.parked;
            self.parked = worker;
            self.parked_count += 1;
            self.mutex.unlock();
            while (worker.signal.load(.acquire) == 0) Futex.wait(&worker.signal, 0);
            self.mutex.lock();
            worker.phase = .between;
        }

        /// The worker that parked last. The caller wakes it after unlocking.
        fn unpark(self: *Self) ?*Worker {
            const worker = self.parked orelse return null;
            self.parked = worker.next_parked;
            self.parked_count -= 1;
            return worker;
        }

        fn wake(worker: *Worker) void {
            worker.signal.store(1, .release);
            Futex.wake(&worker.signal, 1);
        }

        // ---- The monitor -----------------------------------------------------------------------

        fn run_monitor(self: *Self) void {
            while (true) {
                while (self.monitor.signal.load(.acquire) == 0) {
                    Futex.wait(&self.monitor.signal, 0);
                }
                std.Thread.sleep(tick_ns);
                if (!self.tick()) return;
            }
        }

        /// One look; false when the server stops.
        fn tick(self: *Self) bool {
            self.mutex.lock();
            if (self.stopping) {
                self.mutex.unlock();
                return false;
            }
            const stuck = self.progress == self.monitor.progress_seen;
            self.monitor.progress_seen = self.progress;
            const holder_busy = if (self.holder) |holder| switch (holder.phase) {
                .running, .attaching => true,
                .between, .polling, .parked => false,
            } else false;
            const queue_waits = self.ready_count > 0 and self.attaching == 0 and
                self.running < self.options.threads;
            var chosen: ?*Worker = null;
            if (stuck and self.parked != null and (holder_busy or queue_waits)) {
                if (holder_busy) {
                    self.holder = null;
                    self.steals += 1;
                }
                chosen = self.unpark();
            }
            if (holder_busy or queue_waits) {
                self.monitor.idle_ticks = 0;
            } else {
                self.monitor.idle_ticks += 1;
                if (self.monitor.idle_ticks >= idle_ticks_max) {
                    self.monitor.idle_ticks = 0;
                    self.monitor.asleep = true;
                    self.monitor.signal.store(0, .monotonic);
                }
            }
            self.mutex.unlock();
            if (chosen) |worker| wake(worker);
            return true;
        }
    };
}
