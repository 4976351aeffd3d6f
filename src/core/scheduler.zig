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
//!   that none is trapped behind a thread that waits; at most one worker waits for the GIL at a
//! time.
//!
//! A worker without work parks; the one that parked last is woken first, so that thread-local
//! resources of the application stay as few as the load needs. All state is under `mutex`, which is
//! never held during a system call (but a futex's or the poller's wake), a poll, an application
//! call or a wait for the GIL.
//!
//! A request that has begun and parked (its client is slow, say) goes on with the worker that began
//! it and with no other, however long that worker is in another call: what an application ties to
//! a thread (sqlite3's connections, `threading.local`) stays usable. Such a worker is bound. To
//! keep the waits short, parked responses are spread: a bound worker takes a new request only when
//! no idle one has fewer of them, and then requests for fast routes first. A task without `worker`
//! is one that any may go on with.
//!
//! `Host` brings what the scheduler does not know (see `Server`, and the fake in the tests):
//!
//!     Task                          a request; fields `route`, `worker`, `next_own`
//!     wake_poller(*Host)            ends a poll in progress
//!     run(*Host, *Worker, *Task)    calls the application; attached
//!     shed(*Host, *Worker, *Task)   answers 503: waited longer than `queue_timeout_ms`
//!     poll(*Host, *Worker, bool)    submits tasks; waits for events if it may; detached
//!     attach, detach(*Host, *Worker)  takes and gives back the GIL
//!     on_tick(*Host)                the monitor's; whether it has to come again

const std = @import("std");
const sys = @import("sys.zig");
const predictor_module = @import("predictor.zig");
const Predictor = predictor_module.Predictor;
const Pulse = @import("health.zig").Pulse;
const Futex = std.Thread.Futex;

/// The monitor's period, and the time from which a call counts as slow.
pub const tick_ns = 500 * std.time.ns_per_us;
/// Ticks in a row that saw progress, after which the next one may be later: calls finish, and the
/// monitor only costs. The first one that sees none is followed by short ones again.
const calm_ticks_min = 8;
const calm_ticks_each = 4;
/// How long the first request in the queue may be passed over in favour of faster ones, by workers
/// with parked responses.
const passed_over_ns_max = 10 * std.time.ns_per_ms;
/// How many queued requests such a worker looks at.
const choice_max = 64;
/// With requests to run there is no reason to poll but this time: others came meanwhile.
const poll_interval_ns = std.time.ns_per_ms;
/// How long a worker with more to run keeps the GIL from one that waits for it. The interpreter
/// would take it away after its switch interval, which is longer.
const attached_ns_max = std.time.ns_per_ms;
/// How long a worker with requests of its own keeps another waiting that has some too. Longer,
/// since each change of the thread costs, and the time of all together is the same.
const turn_ns_max = 5 * std.time.ns_per_ms;
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
    /// Since when (`monotonic_ns`).
    attached_ns: u64 = 0,
    /// The last request that it ran was one of its own list.
    took_own: bool = false,
    /// It is the next to wait for the GIL, and counted so already. Under the mutex.
    is_next: bool = false,
    phase: Phase = .between,
    /// When the call in progress began (`monotonic_ns`).
    started_ns: u64 = 0,
    route: predictor_module.Route = 0,
    /// 1 when a parked worker shall go on.
    signal: std.atomic.Value(u32) = .init(0),
    next_parked: ?*Worker = null,
    /// How long the request waited in the queue.
    queued_ns: u64 = 0,
    /// When its last wait for the GIL began.
    attach_ns: u64 = 0,
    /// The time at the end of what it did last, where somebody has looked at the clock; else 0.
    ended_ns: u64 = 0,
    /// Requests that only this worker may go on with; `Host.Task`s, oldest first.
    own_first: ?*anyopaque = null,
    own_last: ?*anyopaque = null,
    /// Parked responses that go on with this worker.
    bound: u32 = 0,

    /// Whether a new request is better taken by this worker: it has none of its own to go on with
    /// where the other has, or fewer parked responses.
    fn is_freer_than(self: *const Worker, other: *const Worker) bool {
        const has_own = self.own_first != null;
        if (has_own != (other.own_first != null)) return !has_own;
        return self.bound < other.bound;
    }
};

/// What a worker does, as far as the scheduler must know. Under the mutex.
pub const Phase = enum { between, attaching, running, polling, parked };

pub const Counts = struct {
    running: u32,
    ready: u32,
    /// Parked responses that are to go on.
    begun: u32,
    /// Workers without work.
    parked: u32,
    shed: u64,
    steals: u64,
};

pub fn Scheduler(comptime Host: type) type {
    return struct {
        const Self = @This();
        const Task = Host.Task;
        const Entry = struct { task: *Task, since_ns: u64 };
        const Step = union(enum) { run: *Task, shed: *Task, attach, poll: bool, stop };

        options: Options,
        host: *Host,
        mutex: std.Thread.Mutex = .{},
        ready: []Entry,
        /// Those that have begun to work.
        workers: []*Worker,
        worker_total: usize = 0,
        ready_head: usize = 0,
        ready_count: usize = 0,
        /// The one that may poll; null while it waits for somebody to take it.
        holder: ?*Worker = null,
        parked: ?*Worker = null,
        parked_count: u32 = 0,
        running: u32 = 0,
        attaching: u32 = 0,
        /// Requests that have begun and that any worker may go on with.
        begun_first: ?*Task = null,
        begun_last: ?*Task = null,
        begun_count: u32 = 0,
        /// Requests in the workers' own lists.
        own_count: u32 = 0,
        /// The last call that began was one that goes on; and when one of those began.
        last_was_begun: bool = false,
        begun_ns: u64 = 0,
        /// Who was the last to be given a turn with its own list, by place in `workers`, and when.
        turn: usize = 0,
        turn_ns: u64 = 0,
        /// Whether the last turn was given for what any worker may begin, and whether it still
        /// waits for the GIL.
        last_turn_was_new: bool = false,
        is_turn_coming: bool = false,
        /// Whether the poll in progress may wait.
        poll_waits: bool = false,
        /// When the last poll ended.
        polled_ns: u64 = 0,
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
            calm_ticks: u32 = 0,
        };

        pub fn init(
            gpa: std.mem.Allocator,
            options: Options,
            host: *Host,
        ) error{OutOfMemory}!Self {
            const capacity = @as(usize, options.queue) + options.threads;
            const ready = try gpa.alloc(Entry, capacity);
            errdefer gpa.free(ready);
            const workers = try gpa.alloc(*Worker, options.threads + 1);
            return .{ .options = options, .host = host, .ready = ready, .workers = workers };
        }

        pub fn deinit(self: *Self, gpa: std.mem.Allocator) void {
            gpa.free(self.ready);
            gpa.free(self.workers);
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

        /// A worker's life; returns when the server stops. The thread has the GIL before if
        /// `worker.attached`, and after.
        pub fn work(self: *Self, worker: *Worker) void {
            self.mutex.lock();
            self.workers[self.worker_total] = worker;
            self.worker_total += 1;
            self.mutex.unlock();
            while (true) switch (self.next(worker)) {
                .run => |task| self.host.run(worker, task),
                .shed => |task| self.host.shed(worker, task),
                .attach => self.attach(worker),
                .poll => |may_wait| self.host.poll(worker, may_wait),
                .stop => break,
            };
            if (!worker.attached) self.attach(worker);
        }

        fn attach(self: *Self, worker: *Worker) void {
            self.host.attach(worker);
            worker.attached = true;
            worker.attached_ns = sys.monotonic_ns();
            worker.ended_ns = worker.attached_ns;
        }

        fn detach(self: *Self, worker: *Worker) void {
            worker.attached = false;
            self.host.detach(worker);
        }

        /// Queues what the poller has read, at the time `now_ns`. Returns how many were taken; the
        /// others find the queue full. The poller only.
        pub fn submit(self: *Self, tasks: []const *Task, now_ns: u64) usize {
            self.mutex.lock();
            defer self.mutex.unlock();
            const free_threads = self.options.threads -| self.running;
            const room = self.options.queue + free_threads -| self.ready_count;
            const taken = @min(room, tasks.len);
            for (tasks[0..taken]) |task| self.push(task, now_ns);
            return taken;
        }

        /// Queues a request that has begun, for its own worker where it has one. The poller only.
        pub fn submit_begun(self: *Self, task: *Task) void {
            self.mutex.lock();
            task.next_own = null;
            const worker = task.worker orelse {
                self.push_begun(task);
                self.mutex.unlock();
                return;
            };
            if (last_own(worker)) |last| last.next_own = task else worker.own_first = task;
            worker.own_last = task;
            self.own_count += 1;
            // Else it has a turn when others have had theirs, or a call ends.
            const poller_goes_on = if (self.holder) |holder| holder.own_first != null else false;
            if (worker.phase == .parked and !poller_goes_on and self.can_have_turn()) {
                self.give_turn(worker);
            }
            self.unlock_watched();
        }

        fn last_own(worker: *Worker) ?*Task {
            if (worker.own_first == null) return null;
            return @ptrCast(@alignCast(worker.own_last));
        }

        fn pop_own(self: *Self, worker: *Worker) ?*Task {
            const task: *Task = @ptrCast(@alignCast(worker.own_first orelse return null));
            worker.own_first = task.next_own;
            worker.bound -= 1;
            self.own_count -= 1;
            return task;
        }

        /// A response of this worker's has parked and will go on with it. The worker itself, in a
        /// call.
        pub fn bind(self: *Self, worker: *Worker) void {
            self.mutex.lock();
            defer self.mutex.unlock();
            worker.bound += 1;
        }

        fn push_begun(self: *Self, task: *Task) void {
            task.next_own = null;
            if (self.begun_last) |last| last.next_own = task else self.begun_first = task;
            self.begun_last = task;
            self.begun_count += 1;
        }

        fn pop_begun(self: *Self) ?*Task {
            const task = self.begun_first orelse return null;
            self.begun_first = task.next_own;
            if (self.begun_first == null) self.begun_last = null;
            self.begun_count -= 1;
            return task;
        }

        fn push(self: *Self, task: *Task, now_ns: u64) void {
            self.ready_count += 1;
            self.queued(self.ready_count - 1).* = .{ .task = task, .since_ns = now_ns };
        }

        /// The entry with so many before it in the queue.
        fn queued(self: *const Self, index: usize) *Entry {
            return &self.ready[(self.ready_head + index) % self.ready.len];
        }

        /// Takes out the request that has waited longest, if that is too long. The poller only.
        pub fn take_expired(self: *Self) ?*Task {
            self.mutex.lock();
            defer self.mutex.unlock();
            if (self.ready_count == 0 or !self.is_expired(sys.monotonic_ns())) return null;
            self.shed_count += 1;
            return self.pop(0).task;
        }

        /// When the request that waits longest will have waited too long; null when none will.
        pub fn next_expiry_ms(self: *Self) ?u64 {
            self.mutex.lock();
            defer self.mutex.unlock();
            if (self.ready_count == 0) return null;
            const first = self.queued(0);
            return first.since_ns / std.time.ns_per_ms +| self.options.queue_timeout_ms;
        }

        /// How many workers are in each phase, those that have not begun to work left out.
        pub fn count_phases(self: *Self) std.EnumArray(Phase, u32) {
            self.mutex.lock();
            defer self.mutex.unlock();
            var found: std.EnumArray(Phase, u32) = .initFill(0);
            for (self.workers[0..self.worker_total]) |worker| found.getPtr(worker.phase).* += 1;
            return found;
        }

        /// Calls `see(context, task)` for each request in the queue, oldest first, until it says
        /// no. None of them changes meanwhile.
        pub fn look_at_queue(
            self: *Self,
            context: anytype,
            comptime see: fn (@TypeOf(context), *Task) bool,
        ) void {
            self.mutex.lock();
            defer self.mutex.unlock();
            for (0..self.ready_count) |index| {
                if (!see(context, self.queued(index).task)) return;
            }
        }

        /// How many requests and parked responses wait while no thread is free for them.
        pub fn count_starved(self: *Self) usize {
            self.mutex.lock();
            defer self.mutex.unlock();
            if (self.running < self.options.threads) return 0;
            return self.ready_count + self.own_count + self.begun_count;
        }

        /// Whether parked responses wait for the call that this worker is in.
        pub fn keeps_waiting(self: *Self, worker: *const Worker) bool {
            self.mutex.lock();
            defer self.mutex.unlock();
            return worker.phase == .running and worker.own_first != null;
        }

        /// Whether this worker is in a call.
        pub fn is_running(self: *Self, worker: *const Worker) bool {
            self.mutex.lock();
            defer self.mutex.unlock();
            return worker.phase == .running;
        }

        pub fn counts(self: *Self) Counts {
            self.mutex.lock();
            defer self.mutex.unlock();
            return .{
                .running = self.running,
                .ready = @intCast(self.ready_count),
                .begun = self.own_count + self.begun_count,
                .parked = self.parked_count,
                .shed = self.shed_count,
                .steals = self.steals,
            };
        }

        pub fn pulse(self: *Self) Pulse {
            self.mutex.lock();
            defer self.mutex.unlock();
            const free_threads = self.options.threads -| self.running;
            return .{
                .progress = self.progress,
                .waiting = @as(u32, @intCast(self.ready_count)) + self.own_count + self.begun_count,
                .shed = self.shed_count,
                .is_full = self.ready_count >= self.options.queue + free_threads,
            };
        }

        fn is_expired(self: *const Self, now_ns: u64) bool {
            const first = self.queued(0);
            const limit_ns = self.options.queue_timeout_ms *| std.time.ns_per_ms;
            return now_ns -| first.since_ns >= limit_ns;
        }

        /// Takes out the entry with so many before it, which stay in their order.
        fn pop(self: *Self, index: usize) Entry {
            const entry = self.queued(index).*;
            var place = index;
            while (place > 0) : (place -= 1) self.queued(place).* = self.queued(place - 1).*;
            self.ready_head = (self.ready_head + 1) % self.ready.len;
            self.ready_count -= 1;
            return entry;
        }

        /// Which request in the queue the worker takes: the first; or, where responses that are
        /// parked would have to wait for a slow one, the first that is likely to be fast.
        fn choose(self: *const Self, worker: *const Worker, now_ns: u64) usize {
            if (worker.bound == 0) return 0;
            if (now_ns -| self.queued(0).since_ns >= passed_over_ns_max) return 0;
            for (0..@min(self.ready_count, choice_max)) |index| {
                if (!self.predictor.expects_slow(self.queued(index).task.route)) return index;
            }
            return 0;
        }

        /// Ends the step that the worker did and chooses the next; parks in between if it must.
        fn next(self: *Self, worker: *Worker) Step {
            var now_ns = if (worker.ended_ns != 0) worker.ended_ns else sys.monotonic_ns();
            worker.ended_ns = 0;
            self.mutex.lock();
            self.end_step(worker, now_ns);
            if (self.own_count > 0) self.give_turns(worker, now_ns);
            while (!self.stopping) {
                if (worker.is_next) return self.take_turn(worker);
                if (self.holder == null) self.holder = worker;
                const freer = self.freer_than(worker);
                if (freer) |other| if (other.phase == .parked or self.holder != worker) {
                    self.stand_aside(worker, other);
                    now_ns = sys.monotonic_ns();
                    continue;
                };
                if (self.must_let_go(worker, now_ns)) {
                    self.let_go(worker);
                    continue;
                }
                if (self.is_poll_due(worker, now_ns)) return self.begin_poll(worker, false);
                if (self.running < self.options.threads) {
                    if (self.takes_own(worker, now_ns)) {
                        if (worker.attached) return self.begin_own(worker, now_ns);
                        if (self.attaching == 0) return self.begin_attach(worker, now_ns);
                    } else if (freer == null and self.has_waiting() and self.may_begin(now_ns)) {
                        if (worker.attached) return self.begin_call(worker, now_ns);
                        if (self.attaching == 0) return self.begin_attach(worker, now_ns);
                    }
                }
                if (worker.attached) {
                    self.let_go(worker);
                } else if (self.holder == worker) {
                    return self.begin_poll(worker, true);
                } else {
                    self.park(worker, null);
                    now_ns = sys.monotonic_ns();
                }
            }
            if (self.holder == worker) self.holder = null;
            self.mutex.unlock();
            return .stop;
        }

        /// Whether there is something that any worker may take.
        fn has_waiting(self: *const Self) bool {
            return self.ready_count > 0 or self.begun_first != null;
        }

        /// Whether the worker goes on with a request of its own list. New ones take turns with
        /// those, unless an idle worker is there for them, or it is not their turn.
        fn takes_own(self: *const Self, worker: *const Worker, now_ns: u64) bool {
            if (worker.own_first == null) return false;
            if (!worker.took_own or !self.has_waiting()) return true;
            if (self.is_turn_coming or self.parked_helper() != null) return true;
            return !self.may_begin(now_ns);
        }

        /// Whether a request that any worker may take can begin. One call is kept for those that
        /// only one worker may go on with, or new ones would stay before them: every other time,
        /// or the same time for each where they are short.
        fn may_begin(self: *const Self, now_ns: u64) bool {
            if (self.own_count == 0 or self.last_was_begun) return true;
            if (self.running + 1 < self.options.threads or !self.has_idle_owner()) return true;
            return now_ns -| self.begun_ns < attached_ns_max;
        }

        fn has_idle_owner(self: *const Self) bool {
            for (self.workers[0..self.worker_total]) |worker| {
                if (worker.own_first != null and worker.phase != .running) return true;
            }
            return false;
        }

        /// Whether the worker has had the GIL for long, and has more to run, while another waits.
        fn must_let_go(self: *const Self, worker: *const Worker, now_ns: u64) bool {
            if (!worker.attached or self.attaching == 0) return false;
            return now_ns -| worker.attached_ns >= attached_ns_max;
        }

        /// Unlocks meanwhile.
        fn let_go(self: *Self, worker: *Worker) void {
            self.mutex.unlock();
            self.detach(worker);
            self.mutex.lock();
        }

        fn is_poll_due(self: *const Self, worker: *const Worker, now_ns: u64) bool {
            if (self.holder != worker or now_ns -| self.polled_ns < poll_interval_ns) return false;
            return worker.own_first != null or self.has_waiting();
        }

        /// Unlocks.
        fn begin_poll(self: *Self, worker: *Worker, may_wait: bool) Step {
            worker.phase = .polling;
            self.poll_waits = may_wait;
            self.mutex.unlock();
            if (worker.attached) self.detach(worker);
            return .{ .poll = may_wait };
        }

        /// The idle worker that is to take new requests in the place of this one, which has parked
        /// responses and none to go on with; null when this one may.
        fn freer_than(self: *const Self, worker: *const Worker) ?*Worker {
            if (worker.bound == 0 or worker.own_first != null) return null;
            var best: ?*Worker = null;
            if (self.parked_freest()) |parked| {
                if (parked.is_freer_than(worker)) best = parked;
            }
            for (self.workers[0..self.worker_total]) |other| switch (other.phase) {
                .running, .parked => {},
                .between, .attaching, .polling => {
                    if (other.is_freer_than(best orelse worker)) best = other;
                },
            };
            return best;
        }

        /// Leaves new requests, and the baton, to a worker that is freer. Unlocks meanwhile.
        fn stand_aside(self: *Self, worker: *Worker, freer: *Worker) void {
            if (worker.attached) return self.let_go(worker); // and much may have changed
            var successor: ?*Worker = null;
            if (freer.phase == .parked) {
                const is_needed = self.holder == worker or self.has_waiting();
                if (self.holder == worker) self.holder = null;
                // Else it has been woken already.
                if (is_needed and self.unpark_this(freer)) successor = freer;
            } else if (freer.phase == .polling and self.has_waiting() and self.can_have_turn()) {
                self.give_turn(freer);
            }
            self.park(worker, successor);
        }

        fn end_step(self: *Self, worker: *Worker, now_ns: u64) void {
            switch (worker.phase) {
                .running => {
                    self.running -= 1;
                    self.progress += 1;
                    self.predictor.learn(worker.route, now_ns -| worker.started_ns >= tick_ns);
                },
                .attaching => {
                    self.attaching -= 1;
                    self.is_turn_coming = false;
                },
                .polling => self.polled_ns = now_ns,
                .between => {},
                .parked => unreachable, // `park` sets the phase back before it returns
            }
            worker.phase = .between;
        }

        /// Takes a request, and gives the baton away if the call looks slow. Unlocks.
        fn begin_call(self: *Self, worker: *Worker, now_ns: u64) Step {
            const is_new_due = self.last_was_begun and self.ready_count > 0;
            if (!is_new_due) if (self.pop_begun()) |task| {
                self.last_was_begun = true;
                self.begun_ns = now_ns;
                self.begin_running(worker, task, now_ns);
                return self.run_step(worker, task);
            };
            if (self.is_expired(now_ns)) {
                const task = self.pop(0).task;
                self.shed_count += 1;
                self.mutex.unlock();
                return .{ .shed = task };
            }
            const entry = self.pop(self.choose(worker, now_ns));
            const task = entry.task;
            worker.queued_ns = now_ns -| entry.since_ns;
            worker.took_own = false;
            self.last_was_begun = false;
            self.begin_running(worker, task, now_ns);
            return self.run_step(worker, task);
        }

        /// Goes on with a request that only this worker may go on with. Unlocks.
        fn begin_own(self: *Self, worker: *Worker, now_ns: u64) Step {
            const task = self.pop_own(worker).?;
            worker.took_own = true;
            self.last_was_begun = true;
            self.begun_ns = now_ns;
            self.begin_running(worker, task, now_ns);
            return self.run_step(worker, task);
        }

        fn begin_running(self: *Self, worker: *Worker, task: *Task, now_ns: u64) void {
            worker.phase = .running;
            worker.started_ns = now_ns;
            worker.route = task.route;
            self.running += 1;
            self.progress += 1;
        }

        /// Gives the baton away if the call looks slow. Unlocks.
        fn run_step(self: *Self, worker: *Worker, task: *Task) Step {
            var successor: ?*Worker = null;
            if (self.predictor.expects_slow(task.route)) {
                if (self.holder == worker) {
                    self.holder = null;
                    successor = self.unpark();
                } else if (self.has_waiting() and self.attaching == 0) {
                    successor = self.unpark();
                }
                // The GIL will be free.
                const owns = self.own_count > 0 and self.can_have_turn();
                if (owns) _ = self.give_own_turn(worker, worker.started_ns);
            }
            self.unlock_watched();
            if (successor) |other| wake(other);
            return .{ .run = task };
        }

        /// Whether a worker may be told to wait for the GIL: one at a time, or the one that let go
        /// of it would have it back before the other.
        fn can_have_turn(self: *const Self) bool {
            return self.attaching == 0 and self.running < self.options.threads;
        }

        /// Lets one more worker wait for the GIL, which this one lets go of after a while: one for
        /// the requests that any may take, while this one is at its own, or the next that has some
        /// of its own.
        fn give_turns(self: *Self, worker: *const Worker, now_ns: u64) void {
            if (!self.can_have_turn()) return;
            const is_own_due = worker.own_first == null or now_ns -| self.turn_ns >= turn_ns_max;
            if (is_own_due and self.last_turn_was_new) {
                if (self.give_own_turn(worker, now_ns)) return;
            }
            const may_help = worker.own_first != null and self.has_waiting();
            if (may_help) if (self.parked_helper()) |other| {
                self.last_turn_was_new = true;
                self.is_turn_coming = true;
                return self.give_turn(other);
            };
            if (is_own_due) _ = self.give_own_turn(worker, now_ns);
        }

        /// False when no other worker could go on with requests of its own.
        fn give_own_turn(self: *Self, except: ?*const Worker, now_ns: u64) bool {
            const owner = self.next_owner(except) orelse return false;
            self.turn_ns = now_ns;
            self.last_turn_was_new = false;
            self.give_turn(owner);
            return true;
        }

        /// The next, in their order, that could go on with requests of its own.
        fn next_owner(self: *Self, except: ?*const Worker) ?*Worker {
            for (1..self.worker_total + 1) |step| {
                const place = (self.turn + step) % self.worker_total;
                const worker = self.workers[place];
                if (worker == except or worker.own_first == null) continue;
                const waits = worker.phase == .parked or
                    (worker.phase == .polling and self.poll_waits);
                if (!waits) continue;
                self.turn = place;
                return worker;
            }
            return null;
        }

        fn give_turn(self: *Self, worker: *Worker) void {
            worker.is_next = true;
            self.attaching += 1;
            if (worker.phase == .polling) return self.host.wake_poller();
            if (self.unpark_this(worker)) wake(worker);
        }

        /// Unlocks.
        fn take_turn(self: *Self, worker: *Worker) Step {
            worker.is_next = false;
            worker.phase = .attaching;
            worker.attach_ns = sys.monotonic_ns();
            if (self.holder == null) self.holder = worker;
            self.unlock_watched();
            return .attach;
        }

        fn begin_attach(self: *Self, worker: *Worker, now_ns: u64) Step {
            worker.phase = .attaching;
            worker.attach_ns = now_ns;
            self.attaching += 1;
            self.unlock_watched();
            return .attach;
        }

        /// Unlocks with the monitor awake, since a call is about to begin or the GIL to be waited
        /// for.
        fn unlock_watched(self: *Self) void {
            const asleep = self.monitor.asleep;
            self.monitor.asleep = false;
            self.mutex.unlock();
            if (!asleep) return;
            self.monitor.signal.store(1, .release);
            Futex.wake(&self.monitor.signal, 1);
        }

        /// Waits, unlocked, until another worker or the monitor wants this one. Wakes `successor`
        /// when the mutex is free.
        fn park(self: *Self, worker: *Worker, successor: ?*Worker) void {
            worker.phase = .parked;
            worker.signal.store(0, .monotonic);
            worker.next_parked = self.parked;
            self.parked = worker;
            self.parked_count += 1;
            self.mutex.unlock();
            if (successor) |other| wake(other);
            while (worker.signal.load(.acquire) == 0) Futex.wait(&worker.signal, 0);
            self.mutex.lock();
            worker.phase = .between;
        }

        /// The parked worker that is best for new requests. The caller wakes it after unlocking.
        fn unpark(self: *Self) ?*Worker {
            const worker = self.parked_freest() orelse return null;
            _ = self.unpark_this(worker);
            return worker;
        }

        /// Of the parked workers the one that is freest; of several the one that parked last.
        fn parked_freest(self: *const Self) ?*Worker {
            var freest = self.parked orelse return null;
            var candidate = freest.next_parked;
            while (candidate) |worker| : (candidate = worker.next_parked) {
                if (freest.bound == 0) break;
                if (worker.is_freer_than(freest)) freest = worker;
            }
            return freest;
        }

        /// A parked worker that could take new requests while others go on with their own.
        fn parked_helper(self: *const Self) ?*Worker {
            const freest = self.parked_freest() orelse return null;
            return if (freest.own_first == null) freest else null;
        }

        /// Takes this worker out of the list of parked ones; false when it is not in it. It is free
        /// from then on, and not only when its thread runs again, which may take a while.
        fn unpark_this(self: *Self, wanted: *Worker) bool {
            var link = &self.parked;
            while (link.*) |worker| : (link = &worker.next_parked) {
                if (worker != wanted) continue;
                link.* = worker.next_parked;
                self.parked_count -= 1;
                worker.phase = .between;
                return true;
            }
            return false;
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
                const is_calm = self.monitor.calm_ticks >= calm_ticks_min;
                std.Thread.sleep(if (is_calm) tick_ns * calm_ticks_each else tick_ns);
                if (!self.tick()) return;
            }
        }

        /// Makes the monitor tick. Any thread.
        pub fn wake_monitor(self: *Self) void {
            if (self.monitor.signal.load(.seq_cst) != 0) return;
            self.monitor.signal.store(1, .seq_cst);
            Futex.wake(&self.monitor.signal, 1);
        }

        /// One look; false when the server stops.
        fn tick(self: *Self) bool {
            const has_more = self.host.on_tick();
            self.mutex.lock();
            if (self.stopping) {
                self.mutex.unlock();
                return false;
            }
            const stuck = self.progress == self.monitor.progress_seen;
            self.monitor.progress_seen = self.progress;
            self.monitor.calm_ticks = if (stuck) 0 else self.monitor.calm_ticks +| 1;
            const holder_busy = if (self.holder) |holder| switch (holder.phase) {
                .running, .attaching => true,
                .between, .polling, .parked => false,
            } else false;
            const queue_waits = self.has_waiting() and self.attaching == 0 and
                self.running < self.options.threads;
            // What waits for a worker in a call is taken when that ends, without the monitor.
            const owner_waits = self.own_count > 0 and self.can_have_turn() and
                self.has_idle_owner();
            if (stuck and owner_waits) _ = self.give_own_turn(null, self.turn_ns);
            var chosen: ?*Worker = null;
            if (stuck and self.parked != null and (holder_busy or queue_waits)) {
                if (holder_busy) {
                    self.holder = null;
                    self.steals += 1;
                }
                chosen = self.unpark();
            }
            if (has_more or holder_busy or queue_waits or owner_waits) {
                self.monitor.idle_ticks = 0;
            } else {
                self.monitor.idle_ticks += 1;
                if (self.monitor.idle_ticks >= idle_ticks_max) {
                    self.monitor.idle_ticks = 0;
                    self.monitor.asleep = true;
                    self.monitor.signal.store(0, .seq_cst);
                }
            }
            const sleeps = self.monitor.asleep;
            self.mutex.unlock();
            if (chosen) |worker| wake(worker);
            // The other order than `wake_monitor`'s caller has: one of the two sees the other.
            if (sleeps and self.host.on_tick()) self.monitor.signal.store(1, .seq_cst);
            return true;
        }
    };
}

const testing = std.testing;

/// Enough of a host to look at the rules.
const NoHost = struct {
    pub fn wake_poller(_: *NoHost) void {}

    pub const Task = struct { route: u16 = 0, worker: ?*Worker = null, next_own: ?*Task = null };
};

test "a worker whose turn is not for its own requests may begin another" {
    var host: NoHost = .{};
    for (1..4) |threads| {
        for (0..threads) |running| for ([_]bool{ false, true }) |took_own| {
            for ([_]bool{ false, true }) |last_was_begun| {
                const options: Options = .{
                    .threads = @intCast(threads),
                    .queue = 1,
                    .queue_timeout_ms = 1000,
                };
                var scheduler = try Scheduler(NoHost).init(testing.allocator, options, &host);
                defer scheduler.deinit(testing.allocator);
                var tasks: [2]NoHost.Task = .{ .{}, .{} };
                var worker: Worker = .{ .index = 0, .took_own = took_own, .bound = 1 };
                scheduler.workers[0] = &worker;
                scheduler.worker_total = 1;
                scheduler.running = @intCast(running);
                scheduler.last_was_begun = last_was_begun;
                tasks[0].worker = &worker;
                scheduler.submit_begun(&tasks[0]);
                try testing.expectEqual(1, scheduler.submit(&.{&tasks[1]}, sys.monotonic_ns()));
                // Else it would park, and nobody would ever wake it to any end.
                const now_ns = sys.monotonic_ns();
                const takes_own = scheduler.takes_own(&worker, now_ns);
                try testing.expect(takes_own or scheduler.may_begin(now_ns));
            }
        };
    }
}

test "a worker that has been woken, and does not run yet, is freer than one with responses" {
    var host: NoHost = .{};
    const options: Options = .{ .threads = 2, .queue = 8, .queue_timeout_ms = 1000 };
    var scheduler = try Scheduler(NoHost).init(testing.allocator, options, &host);
    defer scheduler.deinit(testing.allocator);
    var bound: Worker = .{ .index = 0, .bound = 1, .phase = .polling };
    var free: Worker = .{ .index = 1, .phase = .parked };
    for ([_]*Worker{ &bound, &free }, 0..) |worker, place| scheduler.workers[place] = worker;
    scheduler.worker_total = 2;
    scheduler.parked = &free;
    scheduler.parked_count = 1;
    try testing.expectEqual(&free, scheduler.freer_than(&bound));
    try testing.expectEqual(&free, scheduler.unpark());
    try testing.expectEqual(&free, scheduler.freer_than(&bound));
}

test "a worker with parked responses takes fast requests first, but for one that waited long" {
    var host: NoHost = .{};
    const options: Options = .{ .threads = 2, .queue = 8, .queue_timeout_ms = 1000 };
    var scheduler = try Scheduler(NoHost).init(testing.allocator, options, &host);
    defer scheduler.deinit(testing.allocator);
    for (0..4) |_| scheduler.predictor.learn(1, true);
    // So that the queue goes round the end of its memory.
    scheduler.ready_head = scheduler.ready.len - 2;
    const free: Worker = .{ .index = 0 };
    const bound: Worker = .{ .index = 1, .bound = 1 };
    var tasks: [4]NoHost.Task = .{ .{ .route = 1 }, .{ .route = 1 }, .{}, .{ .route = 1 } };
    const now_ns = 5 * passed_over_ns_max;
    for (&tasks) |*task| _ = scheduler.submit(&.{task}, now_ns);
    try testing.expectEqual(0, scheduler.choose(&free, now_ns));
    try testing.expectEqual(2, scheduler.choose(&bound, now_ns));
    try testing.expectEqual(2, scheduler.choose(&bound, now_ns + passed_over_ns_max - 1));
    try testing.expectEqual(0, scheduler.choose(&bound, now_ns + passed_over_ns_max));
    try testing.expectEqual(&tasks[2], scheduler.pop(2).task);
    // Only slow ones are left; they have kept their order.
    try testing.expectEqual(0, scheduler.choose(&bound, now_ns));
    for ([_]usize{ 0, 1, 3 }) |index| {
        try testing.expectEqual(&tasks[index], scheduler.pop(0).task);
    }
    try testing.expectEqual(0, scheduler.ready_count);
}
