//! Drives the scheduler with requests that only one worker may go on with, beside new ones: who
//! waits for whom, counted in calls and not in time.
//!
//! The fake host has a lock for the GIL, and a network that delivers what the test or the tasks
//! themselves send.

const std = @import("std");
const testing = std.testing;
const sys = @import("sys.zig");
const scheduler_module = @import("scheduler.zig");
const Worker = scheduler_module.Worker;
const Futex = std.Thread.Futex;

const Kind = enum {
    /// Ends, and comes again as a new one.
    new,
    /// Parks after each call and goes on with the same worker, at once.
    own,
    /// Parks once. Its second call lasts until that of another has begun.
    meeting,
    /// Parks once. Its second call is its end.
    once,
    /// Ends when the test opens the gate.
    gated,
};

const Task = struct {
    route: u16 = 0,
    kind: Kind,
    has_begun: bool = false,
    worker: ?*Worker = null,
    next_own: ?*Task = null,
    next: ?*Task = null,
    /// Who ran it last.
    ran: ?*Worker = null,
    /// How many calls had begun when it was submitted, and the most that came before its own.
    submitted: u64 = 0,
    calls_before_max: u64 = 0,
    calls: u64 = 0,
};

const Host = struct {
    pub const Task = @import("scheduler_own_test.zig").Task;
    const Scheduler = scheduler_module.Scheduler(Host);

    scheduler: *Scheduler = undefined,
    gil: std.Thread.Mutex = .{},
    network: std.Thread.Mutex = .{},
    arrived_first: ?*Host.Task = null,
    arrived_last: ?*Host.Task = null,
    /// 1 when a poll has to end, as the reactor keeps it: one that comes too early is not lost.
    woken: std.atomic.Value(u32) = .init(0),
    /// With the GIL.
    calls: u64 = 0,
    call_ns: u64 = 0,
    /// How many workers shall have own tasks at least.
    spread: u32 = 0,
    /// Tasks that are not delivered again.
    ending: std.atomic.Value(bool) = .init(false),
    parked: std.atomic.Value(u32) = .init(0),
    met: std.atomic.Value(u32) = .init(0),
    /// Calls of tasks that have parked before, of `once`, and of `gated` ones.
    resumed: std.atomic.Value(u32) = .init(0),
    entered: std.atomic.Value(u32) = .init(0),
    gate: std.Thread.ResetEvent = .{},
    faults: std.atomic.Value(u32) = .init(0),

    pub fn attach(self: *Host, _: *Worker) void {
        self.gil.lock();
    }

    pub fn detach(self: *Host, _: *Worker) void {
        self.gil.unlock();
    }

    pub fn on_tick(_: *Host) bool {
        return false;
    }

    pub fn wake_poller(self: *Host) void {
        self.woken.store(1, .release);
        Futex.wake(&self.woken, 1);
    }

    pub fn shed(self: *Host, _: *Worker, _: *Host.Task) void {
        _ = self.faults.fetchAdd(1, .acq_rel);
    }

    pub fn poll(self: *Host, _: *Worker, may_wait: bool) void {
        // As with the real one nothing but an event, or a wake, ends the wait.
        while (may_wait and self.woken.load(.acquire) == 0) Futex.wait(&self.woken, 0);
        self.woken.store(0, .release);
        // A bound, as there is one for the events of a batch; the rest is for the next poll.
        var budget: u32 = 16;
        while (budget > 0) : (budget -= 1) {
            const task = self.take_arrived() orelse return;
            if (task.has_begun) {
                self.scheduler.submit_begun(task);
            } else if (self.scheduler.submit(&.{task}, sys.monotonic_ns()) == 0) {
                self.shed(undefined, task);
            }
        }
        self.woken.store(1, .release);
    }

    fn deliver(self: *Host, task: *Host.Task) void {
        defer self.wake_poller();
        self.network.lock();
        defer self.network.unlock();
        task.submitted = self.calls;
        task.next = null;
        if (self.arrived_last) |last| last.next = task else self.arrived_first = task;
        self.arrived_last = task;
    }

    fn take_arrived(self: *Host) ?*Host.Task {
        self.network.lock();
        defer self.network.unlock();
        const task = self.arrived_first orelse return null;
        self.arrived_first = task.next;
        if (self.arrived_first == null) self.arrived_last = null;
        return task;
    }

    pub fn run(self: *Host, worker: *Worker, task: *Host.Task) void {
        self.network.lock();
        self.calls += 1;
        task.calls += 1;
        task.ran = worker;
        task.calls_before_max = @max(task.calls_before_max, self.calls - task.submitted);
        self.network.unlock();
        if (task.has_begun and task.worker != worker) _ = self.faults.fetchAdd(1, .acq_rel);
        switch (task.kind) {
            .new => self.compute(),
            .own => {
                if (!task.has_begun and self.met.load(.acquire) < self.spread) {
                    self.gil.unlock();
                    defer self.gil.lock();
                    self.meet(self.spread);
                } else self.compute();
                self.park_task(worker, task);
            },
            .meeting => {
                self.gil.unlock();
                defer self.gil.lock();
                if (!task.has_begun) {
                    // So that each begins with a worker of its own.
                    self.meet(2);
                    self.park_task(worker, task);
                    _ = self.parked.fetchAdd(1, .acq_rel);
                } else self.meet(4);
                return;
            },
            .once => {
                if (!task.has_begun) {
                    self.park_task(worker, task);
                    _ = self.parked.fetchAdd(1, .acq_rel);
                } else _ = self.resumed.fetchAdd(1, .acq_rel);
                return;
            },
            .gated => {
                self.gil.unlock();
                defer self.gil.lock();
                _ = self.entered.fetchAdd(1, .acq_rel);
                self.gate.timedWait(20 * std.time.ns_per_s) catch {
                    _ = self.faults.fetchAdd(1, .acq_rel);
                };
                return;
            },
        }
        if (self.ending.load(.acquire)) return;
        self.deliver(task);
    }

    fn compute(self: *const Host) void {
        const end = sys.monotonic_ns() + self.call_ns;
        while (sys.monotonic_ns() < end) std.atomic.spinLoopHint();
    }

    fn park_task(self: *Host, worker: *Worker, task: *Host.Task) void {
        task.has_begun = true;
        task.worker = worker;
        self.scheduler.bind(worker);
    }

    fn meet(self: *Host, count: u32) void {
        _ = self.met.fetchAdd(1, .acq_rel);
        for (0..30_000) |_| {
            if (self.met.load(.acquire) >= count) return;
            sys.sleep_ms(1);
        }
        _ = self.faults.fetchAdd(1, .acq_rel);
    }
};

const Play = struct {
    host: Host = .{},
    scheduler: Host.Scheduler = undefined,
    workers: [8]Worker = undefined,
    threads: [8]std.Thread = undefined,

    fn start(self: *Play, threads: u32) !void {
        self.scheduler = try Host.Scheduler.init(testing.allocator, .{
            .threads = threads,
            .queue = 1024,
            .queue_timeout_ms = 60_000,
        }, &self.host);
        self.host.scheduler = &self.scheduler;
        try self.scheduler.start();
        for (0..self.scheduler.worker_count()) |index| {
            self.workers[index] = .{ .index = @intCast(index) };
            const worker = &self.workers[index];
            self.threads[index] = try std.Thread.spawn(.{}, work, .{ self, worker });
        }
    }

    fn work(self: *Play, worker: *Worker) void {
        self.host.gil.lock();
        self.scheduler.work(worker);
        self.host.gil.unlock();
    }

    fn finish(self: *Play) !void {
        self.host.ending.store(true, .release);
        self.scheduler.stop();
        self.host.wake_poller();
        for (self.threads[0..self.scheduler.worker_count()]) |thread| thread.join();
        self.scheduler.join();
        self.scheduler.deinit(testing.allocator);
        try testing.expectEqual(0, self.host.faults.load(.acquire));
    }
};

fn wait_for(counter: *const std.atomic.Value(u32), wanted: u32) !void {
    for (0..20_000) |_| {
        if (counter.load(.acquire) >= wanted) return;
        sys.sleep_ms(1);
    }
    return error.NotReached;
}

/// Has the tasks begin and park, one after the other.
fn park_each(host: *Host, tasks: []Task) !void {
    try wait_begun(host.scheduler);
    for (tasks, 1..) |*task, count| {
        host.deliver(task);
        try wait_for(&host.parked, @intCast(count));
    }
}

test "own: tasks that park are spread over all workers before one has two" {
    for ([_]u32{ 1, 3, 7 }) |threads| {
        var play: Play = .{};
        try play.start(threads);
        const count = threads + 1;
        var tasks: [16]Task = @splat(.{ .kind = .once });
        try park_each(&play.host, tasks[0 .. 2 * count]);
        var of_each: [8]u32 = @splat(0);
        for (tasks[0 .. 2 * count]) |*task| of_each[task.worker.?.index] += 1;
        for (&tasks) |*task| if (task.has_begun) play.host.deliver(task);
        try wait_for(&play.host.resumed, 2 * count);
        try play.finish();
        for (of_each[0..count]) |found| try testing.expectEqual(2, found);
    }
}

test "own: a task waits for its worker while that is in another call, however long" {
    const threads = 3;
    var play: Play = .{};
    try play.start(threads);
    const host = &play.host;
    var tasks: [threads + 1]Task = @splat(.{ .kind = .once });
    try park_each(host, &tasks);
    // Every worker has one that waits. These keep two of the workers.
    var gated: [2]Task = @splat(.{ .kind = .gated, .route = 1 });
    for (&gated) |*task| host.deliver(task);
    try wait_for(&host.entered, 2);
    for (&tasks) |*task| host.deliver(task);
    try wait_for(&host.resumed, 2);
    sys.sleep_ms(150);
    const before = host.resumed.load(.acquire);
    // Nobody has to look again and again for that.
    play.scheduler.mutex.lock();
    const is_asleep = play.scheduler.monitor.asleep;
    play.scheduler.mutex.unlock();
    host.gate.set();
    try wait_for(&host.resumed, threads + 1);
    try play.finish();
    try testing.expectEqual(2, before);
    try testing.expect(is_asleep);
}

test "own: with one thread new tasks go to the worker that has none parked" {
    var play: Play = .{};
    try play.start(1);
    const host = &play.host;
    var tasks: [1]Task = .{.{ .kind = .once }};
    try park_each(host, &tasks);
    for (0..50) |_| {
        var ended: [1]Task = .{.{ .kind = .gated, .route = 1 }};
        host.gate.set();
        const before = host.entered.load(.acquire);
        host.deliver(&ended[0]);
        try wait_for(&host.entered, before + 1);
        try wait_idle(&play.scheduler);
        try testing.expect(ended[0].ran != tasks[0].worker);
    }
    host.deliver(&tasks[0]);
    try wait_for(&host.resumed, 1);
    try play.finish();
}

/// Until every worker could be chosen.
fn wait_begun(scheduler: *Host.Scheduler) !void {
    for (0..20_000) |_| {
        var begun: u32 = 0;
        for (scheduler.count_phases().values) |count| begun += count;
        if (begun == scheduler.worker_count()) return;
        sys.sleep_ms(1);
    }
    return error.NotReached;
}

fn wait_idle(scheduler: *Host.Scheduler) !void {
    for (0..20_000) |_| {
        if (scheduler.counts().running == 0) return;
        sys.sleep_ms(1);
    }
    return error.NotReached;
}

test "own: two workers that are resumed at once both go on, though one waits for the other" {
    for (0..5) |_| {
        var play: Play = .{};
        try play.start(3);
        var tasks: [2]Task = @splat(.{ .kind = .meeting });
        for (&tasks) |*task| play.host.deliver(task);
        play.host.wake_poller();
        for (0..10_000) |_| {
            if (play.host.parked.load(.acquire) >= 2) break;
            sys.sleep_ms(1);
        }
        sys.sleep_ms(5);
        // Somebody else computes while both are resumed: one of their workers waits for the GIL,
        // the other has to wait for that.
        play.host.gil.lock();
        for (&tasks) |*task| play.host.deliver(task);
        play.host.wake_poller();
        sys.sleep_ms(5);
        play.host.gil.unlock();
        for (0..30_000) |_| {
            if (play.host.met.load(.acquire) >= 4) break;
            sys.sleep_ms(1);
        }
        try play.finish();
    }
}

const Shape = struct {
    threads: u32,
    own: u32,
    new: u32,
};

/// The most calls that began between a task's delivery and its own.
const Waits = struct { own: u64, new: u64 };

const calls_wanted = 6000;

/// Tasks that come again as soon as they have been called, until so many calls have been made.
fn mix(shape: Shape) !Waits {
    var play: Play = .{ .host = .{
        .call_ns = 20 * std.time.ns_per_us,
        .spread = @min(shape.threads, shape.own),
    } };
    const host = &play.host;
    const tasks = try testing.allocator.alloc(Task, shape.own + shape.new);
    defer testing.allocator.free(tasks);
    for (tasks, 0..) |*task, index| {
        const is_own = index < shape.own;
        task.* = .{ .kind = if (is_own) .own else .new, .route = @intFromBool(is_own) };
        host.deliver(task);
    }
    try play.start(shape.threads);
    var waits: Waits = .{ .own = 0, .new = 0 };
    var is_over = false;
    for (0..20_000) |_| {
        sys.sleep_ms(1);
        host.network.lock();
        defer host.network.unlock();
        if (host.calls < calls_wanted) continue;
        for (tasks) |*task| {
            // What waits now counts too.
            const longest = @max(task.calls_before_max, host.calls - task.submitted);
            const sum = if (task.kind == .own) &waits.own else &waits.new;
            sum.* = @max(sum.*, longest);
        }
        is_over = true;
        break;
    }
    try play.finish();
    try testing.expect(is_over);
    return waits;
}

test "own: new requests and those that go on wait for a bounded number of calls" {
    for ([_]Shape{
        // All of the one call at a time, by two workers that both have more than they can do.
        .{ .threads = 1, .own = 400, .new = 0 },
        .{ .threads = 1, .own = 40, .new = 4 },
        .{ .threads = 4, .own = 400, .new = 0 },
        .{ .threads = 4, .own = 400, .new = 4 },
        .{ .threads = 4, .own = 4, .new = 40 },
    }) |shape| {
        // A worker that the machine has no processor for has no turn for so long. Not each time.
        for (0..5) |_| {
            const waits = try mix(shape);
            // Each of the others once, and what fits into the turns of the other workers.
            if (waits.own < 3000 and waits.new < 1500) break;
        } else return error.Unfair;
    }
}
