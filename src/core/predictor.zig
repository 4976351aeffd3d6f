//! Guesses whether the next call of a handler will be slow, from what calls for the same route did.
//!
//! A handler that is about to block should give the baton away before it starts, one that answers
//! at once should keep it. Each route has a small saturating counter, as in a branch predictor: a
//! slow call adds a lot and a fast one takes a little away, so that one call stretched by a
//! preempted thread does not convert a route, and a route that blocks now and then counts as slow.
//! A route never seen takes the counter that all first calls share. Owner: the scheduler, under
//! its mutex.

const std = @import("std");

/// A hash of a request's path; equal for paths that differ in digits alone ("/users/17").
pub const Route = u16;

const routes = 1024;
const unseen: u8 = 255;
const ceiling: u8 = 16;
const slow_step: u8 = 5;
const fast_step: u8 = 1;
const threshold: u8 = 8;

pub const Predictor = struct {
    scores: [routes]u8 = @splat(unseen),
    first_calls: u8 = 0,

    pub fn expects_slow(self: *const Predictor, route: Route) bool {
        const score = self.scores[route % routes];
        return (if (score == unseen) self.first_calls else score) >= threshold;
    }

    pub fn learn(self: *Predictor, route: Route, slow: bool) void {
        const score = &self.scores[route % routes];
        if (score.* == unseen) {
            self.first_calls = stepped(self.first_calls, slow);
            score.* = if (slow) slow_step else 0;
        } else {
            score.* = stepped(score.*, slow);
        }
    }

    fn stepped(score: u8, slow: bool) u8 {
        return if (slow) @min(ceiling, score + slow_step) else score -| fast_step;
    }
};

pub fn route_of(path: []const u8) Route {
    var hash: u32 = 0x811c9dc5;
    for (path[0..@min(path.len, 64)]) |byte| {
        if (byte -% '0' < 10) continue;
        hash = (hash ^ byte) *% 0x01000193;
    }
    return @truncate(hash ^ (hash >> 16));
}

const testing = std.testing;

test "two slow calls in a row make a route slow, one does not" {
    var predictor: Predictor = .{};
    const route = route_of("/report");
    try testing.expect(!predictor.expects_slow(route));
    predictor.learn(route, true);
    try testing.expect(!predictor.expects_slow(route));
    predictor.learn(route, true);
    try testing.expect(predictor.expects_slow(route));
}

test "a fast route forgets a preempted call" {
    var predictor: Predictor = .{};
    const route = route_of("/");
    for (0..1000) |call| {
        predictor.learn(route, call % 50 == 0);
        try testing.expect(!predictor.expects_slow(route));
    }
}

test "a slow route turns fast after a run of fast calls" {
    var predictor: Predictor = .{};
    const route = route_of("/report");
    for (0..10) |_| predictor.learn(route, true);
    for (0..8) |_| predictor.learn(route, false);
    try testing.expect(predictor.expects_slow(route));
    predictor.learn(route, false);
    try testing.expect(!predictor.expects_slow(route));
}

test "routes never seen follow what first calls did" {
    var predictor: Predictor = .{};
    predictor.learn(route_of("/a"), true);
    predictor.learn(route_of("/b"), true);
    try testing.expect(predictor.expects_slow(route_of("/c")));
    try testing.expectEqual(route_of("/users/17/edit"), route_of("/users/4/edit"));
}
