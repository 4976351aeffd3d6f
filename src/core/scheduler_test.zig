//! Drives the scheduler with a fake host: tasks that are fast, block or spin, a lock for the GIL,
//! and a list for the network. Thousands of interleavings, also under ThreadSanitizer, without
//! CPython.

const std = @import("std");
const testing = std.testing;
const scheduler_module = @import("scheduler.zig");
const Worker = scheduler_module.Worker;
const Futex = std.Thread.Futex;

const Kind = enum {
    fast,
    blocking,
    spinning,
    /// Parks in the middle: its second half is for the worker that did the first.
    parking,
};

const FakeTask = struct {
    route: u16,
    kind: Kind,
    has_begun: bool = false,
    worker: ?*Worker = null,
    next_own: ?*FakeTask = null,
    /// How often it was begun and not yet submitted again; never above one.
    begun: std.atomic.Value(u32) = .init(0),
    calls: u32 = 0,
    sheds: u32 = 0,
    next: ?*FakeTask = null,
};

const FakeHost = struct {
    pub const Task = FakeTask;
    const Scheduler = scheduler_module.Scheduler(FakeHost);

    scheduler: *Scheduler = undefined,
    gil: std.Thread.Mutex = .{},
    /// What "the network" has delivered and the poller has not read.
    arrived_mutex: std.Thread.Mutex = .{},
    arrived: ?*FakeTask = null,
    arrivals: std.atomic.Value(u32) = .init(0),
    pollers: std.atomic.Value(u32) = .init(0),
    running: std.atomic.Value(u32) = .init(0),
    running_max: std.atomic.Value(u32) = .init(0),
    remaining: std.atomic.Value(i64),
    finished: std.Thread.ResetEvent = .{},
    faults: std.atomic.Value(u32) = .init(0),
    threads_max: u32,

    pub fn attach(self: *FakeHost, _: *Worker) void {
        self.gil.lock();
    }

    pub fn detach(self: *FakeHost, _: *Worker) void {
        self.gil.unlock();
    }

    pub fn poll(self: *FakeHost, _: *Worker, may_wait: bool) void {
        if (self.pollers.fetchAdd(1, .acq_rel) != 0) self.fault();
        defer _ = self.pollers.fetchSub(1, .acq_rel);
        const seen = self.arrivals.load(.acquire);
        while (self.scheduler.take_expired()) |task| self.count_shed(task);
        var batch: [16]*FakeTask = undefined;
        const count = self.take_arrived(&batch);
        if (count > 0) {
            for (batch[0..count]) |task| self.submit(task);
            return;
        }
        if (self.remaining.load(.acquire) <= 0) return self.finished.set();
        if (!may_wait) return;
        Futex.timedWait(&self.arrivals, seen, 5 * std.time.ns_per_ms) catch {};
    }

    fn submit(self: *FakeHost, task: *FakeTask) void {
        if (task.has_begun) return self.scheduler.submit_begun(task);
        const now_ns = @import("sys.zig").monotonic_ns();
        if (self.scheduler.submit(&.{task}, now_ns) == 0) self.count_shed(task);
    }

    pub fn on_tick(_: *FakeHost) bool {
        return false;
    }

    pub fn wake_poller(self: *FakeHost) void {
        _ = self.arrivals.fetchAdd(1, .acq_rel);
        Futex.wake(&self.arrivals, 1);
    }

    pub fn run(self: *FakeHost, worker: *Worker, task: *FakeTask) void {
        const now = self.running.fetchAdd(1, .acq_rel) + 1;
        _ = self.running_max.fetchMax(now, .acq_rel);
        if (now > self.threads_max) self.fault();
        if (task.begun.fetchAdd(1, .acq_rel) != 0) self.fault();
        // Plain, unsynchronised writes: ThreadSanitizer tells if two threads ever share a task.
        task.calls += 1;
        switch (task.kind) {
            .fast => {},
            .parking => if (task.has_begun) {
                if (task.worker != worker) self.fault();
                task.has_begun = false;
                task.worker = null;
            } else {
                task.has_begun = true;
                task.worker = worker;
                self.scheduler.bind(worker);
            },
            .blocking => {
                self.gil.unlock();
                std.Thread.sleep(700 * std.time.ns_per_us);
                self.gil.lock();
            },
            .spinning => {
                var timer = std.time.Timer.start() catch return self.fault();
                while (timer.read() < 700 * std.time.ns_per_us) std.atomic.spinLoopHint();
            },
        }
        _ = self.running.fetchSub(1, .acq_rel);
        _ = task.begun.fetchSub(1, .acq_rel);
        self.deliver(task);
    }

    pub fn shed(self: *FakeHost, _: *Worker, task: *FakeTask) void {
        self.count_shed(task);
    }

    fn count_shed(self: *FakeHost, task: *FakeTask) void {
        task.sheds += 1;
        self.deliver(task);
    }

    /// The client of `task` sends its next request, unless enough have been sent.
    fn deliver(self: *FakeHost, task: *FakeTask) void {
        const left = self.remaining.fetchSub(1, .acq_rel);
        if (left > 0) {
            self.arrived_mutex.lock();
            task.next = self.arrived;
            self.arrived = task;
            self.arrived_mutex.unlock();
        }
        _ = self.arrivals.fetchAdd(1, .acq_rel);
        Futex.wake(&self.arrivals, 1);
    }

    fn take_arrived(self: *FakeHost, batch: *[16]*FakeTask) usize {
        self.arrived_mutex.lock();
        defer self.arrived_mutex.unlock();
        var count: usize = 0;
        while (count < batch.len) : (count += 1) {
            const task = self.arrived orelse break;
            self.arrived = task.next;
            batch[count] = task;
        }
        return count;
    }

    fn fault(self: *FakeHost) void {
        _ = self.faults.fetchAdd(1, .acq_rel);
    }
};

const Outcome = struct { running_max: u32, steals: u64, shed: u64 };

const Scenario = struct {
    threads: u32,
    queue: u32 = 64,
    queue_timeout_ms: u64 = 10_000,
    calls: i64,
    kinds: []const Kind,
};

fn play(scenario: Scenario) !Outcome {
    const gpa = testing.allocator;
    var host: FakeHost = .{
        .remaining = .init(scenario.calls),
        .threads_max = scenario.threads,
    };
    var scheduler = try FakeHost.Scheduler.init(gpa, .{
        .threads = scenario.threads,
        .queue = scenario.queue,
        .queue_timeout_ms = scenario.queue_timeout_ms,
    }, &host);
    defer scheduler.deinit(gpa);
    host.scheduler = &scheduler;

    const tasks = try gpa.alloc(FakeTask, scenario.kinds.len);
    defer gpa.free(tasks);
    for (tasks, scenario.kinds) |*task, kind| {
        task.* = .{ .route = @intFromEnum(kind), .kind = kind };
        host.deliver(task);
    }
    try scheduler.start();
    const workers = try gpa.alloc(Worker, scheduler.worker_count());
    defer gpa.free(workers);
    const threads = try gpa.alloc(std.Thread, workers.len);
    defer gpa.free(threads);
    for (workers, threads, 0..) |*worker, *thread, index| {
        worker.* = .{ .index = @intCast(index) };
        thread.* = try std.Thread.spawn(.{}, work, .{ &scheduler, worker });
    }
    const is_finished = if (host.finished.timedWait(60 * std.time.ns_per_s)) true else |_| false;
    const counts = scheduler.counts();
    scheduler.stop();
    for (threads) |thread| thread.join();
    scheduler.join();

    try testing.expect(is_finished);
    try testing.expectEqual(0, host.faults.load(.acquire));
    try testing.expectEqual(0, host.running.load(.acquire));
    var calls: u64 = 0;
    for (tasks) |task| calls += task.calls + task.sheds;
    // Each task was delivered once before the first call.
    try testing.expect(calls + tasks.len >= scenario.calls);
    return .{
        .running_max = host.running_max.load(.acquire),
        .steals = counts.steals,
        .shed = counts.shed,
    };
}

fn work(scheduler: *FakeHost.Scheduler, worker: *Worker) void {
    scheduler.host.gil.lock();
    scheduler.work(worker);
    scheduler.host.gil.unlock();
}

test "fast calls run on whoever polls" {
    const outcome = try play(.{
        .threads = 4,
        .calls = 20_000,
        .kinds = &@as([16]Kind, @splat(.fast)),
    });
    try testing.expect(outcome.running_max <= 4);
}

test "blocking calls run side by side, as many as there are threads" {
    const outcome = try play(.{
        .threads = 8,
        .calls = 2000,
        .kinds = &@as([8]Kind, @splat(.blocking)),
    });
    try testing.expect(outcome.running_max > 4);
}

test "with one thread calls run one after another and polling goes on" {
    const kinds = [_]Kind{ .blocking, .fast, .fast, .spinning };
    const outcome = try play(.{ .threads = 1, .calls = 600, .kinds = &kinds });
    try testing.expectEqual(1, outcome.running_max);
}

test "spinning calls lose the baton to a thread that polls" {
    const outcome = try play(.{
        .threads = 4,
        .calls = 400,
        .kinds = &@as([6]Kind, @splat(.spinning)),
    });
    try testing.expect(outcome.running_max >= 1);
}

test "a mixture finishes for many sizes" {
    const kinds = [_]Kind{ .fast, .blocking, .fast, .spinning, .fast, .fast, .blocking, .fast };
    for ([_]u32{ 1, 2, 3, 8, 16 }) |threads| {
        _ = try play(.{ .threads = threads, .calls = 1500, .kinds = &kinds });
    }
}

test "a request that parked goes on with its worker" {
    const kinds = [_]Kind{ .parking, .blocking, .parking, .fast, .parking, .spinning, .parking };
    for ([_]u32{ 1, 2, 4 }) |threads| {
        _ = try play(.{ .threads = threads, .calls = 1500, .kinds = &kinds });
    }
}

test "a full queue refuses and an overlong wait is shed" {
    const kinds: [32]Kind = @splat(.blocking);
    _ = try play(.{ .threads = 2, .queue = 4, .calls = 1000, .kinds = &kinds });
    const outcome = try play(.{
        .threads = 1,
        .queue = 64,
        .queue_timeout_ms = 2,
        .calls = 300,
        .kinds = &kinds,
    });
    try testing.expect(outcome.shed > 0);
}

test "stopping while nothing happens lets every worker return" {
    for (0..50) |_| {
        _ = try play(.{ .threads = 4, .calls = 1, .kinds = &.{.fast} });
    }
}
