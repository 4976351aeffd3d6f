//! The part of CPython's stable ABI (3.11) that the bridge uses, declared by hand.
//!
//! Declared here and not translated from headers, so that one build serves every version and the
//! thread state stays opaque (translated, it fails on 3.12 and later). `Object` pointers say in
//! each comment whether they are borrowed or owned ("new"); all calls need the GIL but those that
//! take it. The only file with `extern` declarations of Python.

const std = @import("std");

pub const ssize = isize;

/// A PyObject. Its two fields have been at these places in every version of the stable ABI.
pub const Object = extern struct {
    refcount: ssize,
    type: *Type,
};

pub const Type = opaque {};
pub const ThreadState = opaque {};

pub const Error = error{
    /// A Python exception is set.
    Raised,
};

// ---- References --------------------------------------------------------------------------------

// As the macros of the 3.11 stable ABI do it, whose place and width of the count every later
// version keeps for extensions built so; but for immortal objects.

/// A new reference to the same object.
pub inline fn new(object: *Object) *Object {
    if (!is_immortal(object)) object.refcount +%= 1;
    return object;
}

pub inline fn drop(object: *Object) void {
    if (is_immortal(object)) return;
    object.refcount -%= 1;
    if (object.refcount == 0) _Py_Dealloc(object);
}

/// Whether CPython does not count it either (PEP 683, from 3.12 on): counted on one side alone, the
/// count would drift until the object is mortal. Before 3.12 no count comes near this bit.
inline fn is_immortal(object: *const Object) bool {
    return @as(i32, @truncate(object.refcount)) < 0;
}

pub inline fn drop_maybe(object: ?*Object) void {
    if (object) |o| drop(o);
}

/// The same where the tp_dealloc is known.
pub inline fn drop_known(object: *Object, comptime dealloc: fn (*Object) callconv(.c) void) void {
    object.refcount -%= 1;
    if (object.refcount == 0) dealloc(object);
}

/// For references that are there and not counted.
pub inline fn uncount(object: *Object, references: ssize) void {
    object.refcount -%= references;
}

pub inline fn recount(object: *Object, references: ssize) void {
    object.refcount +%= references;
}

/// Makes a live object of memory that is set up for one, with one reference: what PyObject_Init
/// does. The object does not count as an instance of its type, which has to be immortal.
pub inline fn revive(object: *Object) void {
    object.refcount = 1;
}

pub inline fn owned(object: ?*Object) Error!*Object {
    return object orelse error.Raised;
}

/// The attribute of this name, a new reference; null where there is none.
pub fn attribute(object: *Object, name: *Object) Error!?*Object {
    return PyObject_GetAttr(object, name) orelse {
        try forgive(&.{PyExc_AttributeError});
        return null;
    };
}

pub fn is_true(object: *Object) Error!bool {
    const truth = PyObject_IsTrue(object);
    try checked(truth);
    return truth == 1;
}

pub inline fn checked(result: c_int) Error!void {
    if (result < 0) return error.Raised;
}

// ---- Text and bytes ----------------------------------------------------------------------------

/// A new `str` of bytes that each stand for one character (PEP 3333's native strings).
pub inline fn latin1(bytes: []const u8) Error!*Object {
    return owned(PyUnicode_DecodeLatin1(bytes.ptr, @intCast(bytes.len), null));
}

pub inline fn interned(text: [:0]const u8) Error!*Object {
    return owned(PyUnicode_InternFromString(text.ptr));
}

pub inline fn bytes_from(bytes: []const u8) Error!*Object {
    return owned(PyBytes_FromStringAndSize(bytes.ptr, @intCast(bytes.len)));
}

pub inline fn is_exact(object: *const Object, kind: *const Type) bool {
    return object.type == kind;
}

/// Whether it is of this type or one made from it.
pub fn is_kind_of(object: *const Object, kind: *Type) bool {
    return object.type == kind or PyType_IsSubtype(object.type, kind) != 0;
}

pub inline fn is_string(object: *Object) bool {
    return PyType_GetFlags(object.type) & flag_unicode_subclass != 0;
}

pub inline fn is_bytes(object: *Object) bool {
    return PyType_GetFlags(object.type) & flag_bytes_subclass != 0;
}

pub inline fn is_list(object: *Object) bool {
    return PyType_GetFlags(object.type) & flag_list_subclass != 0;
}

pub inline fn is_tuple(object: *Object) bool {
    return PyType_GetFlags(object.type) & flag_tuple_subclass != 0;
}

pub inline fn is_exception(object: *Object) bool {
    return PyType_GetFlags(object.type) & flag_exception_subclass != 0;
}

/// The contents, as long as the object lives. Only for what `is_bytes` says yes to.
pub inline fn bytes_of(object: *Object) []const u8 {
    var pointer: [*]u8 = undefined;
    var size: ssize = 0;
    if (PyBytes_AsStringAndSize(object, &pointer, &size) < 0) return "";
    return pointer[0..@intCast(size)];
}

/// A view of a `str` as Latin-1. ASCII costs nothing; else `temporary` holds the encoded copy.
pub const Latin1 = struct {
    text: []const u8,
    temporary: ?*Object,

    /// The caller holds a reference of its own to the `str`. Python code may run only where this
    /// raises: making an exception may run the collector, and that finalizers.
    pub fn of(object: *Object) Error!Latin1 {
        var size: ssize = 0;
        // A lone surrogate, which UTF-8 refuses as Latin-1 does.
        const pointer = PyUnicode_AsUTF8AndSize(object, &size) orelse return error.Raised;
        // As many bytes of UTF-8 as characters: it is ASCII.
        if (PyUnicode_GetLength(object) == size) {
            return .{ .text = pointer[0..@intCast(size)], .temporary = null };
        }
        const encoded = try owned(PyUnicode_AsLatin1String(object));
        return .{ .text = bytes_of(encoded), .temporary = encoded };
    }

    pub fn deinit(self: Latin1) void {
        drop_maybe(self.temporary);
    }
};

pub inline fn none() *Object {
    return new(&_Py_NoneStruct);
}

pub inline fn is_none(object: *const Object) bool {
    return object == &_Py_NoneStruct;
}

pub inline fn boolean(value: bool) *Object {
    return new(if (value) &_Py_TrueStruct else &_Py_FalseStruct);
}

// ---- Exceptions --------------------------------------------------------------------------------

pub fn raise(kind: *Object, message: [*:0]const u8) Error {
    PyErr_SetString(kind, message);
    return error.Raised;
}

/// Clears the exception that is set, if it is one of these.
pub fn forgive(kinds: []const *Object) Error!void {
    for (kinds) |kind| if (PyErr_ExceptionMatches(kind) != 0) return PyErr_Clear();
    return error.Raised;
}

/// The exception that this one was made of, as tracebacks show it; a new reference.
pub fn exception_before(exception: *Object) ?*Object {
    if (PyException_GetCause(exception)) |cause| return cause;
    const is_suppressed = PyObject_GetAttrString(exception, "__suppress_context__") orelse {
        // An exception of the application's may have a property there that fails.
        PyErr_Clear();
        return null;
    };
    defer drop(is_suppressed);
    return if (is_suppressed == &_Py_FalseStruct) PyException_GetContext(exception) else null;
}

/// Takes the exception that is set, with its traceback; a new reference.
pub fn take_exception() ?*Object {
    var kind: ?*Object = null;
    var value: ?*Object = null;
    var traceback: ?*Object = null;
    PyErr_Fetch(&kind, &value, &traceback);
    PyErr_NormalizeException(&kind, &value, &traceback);
    if (traceback) |trace| {
        if (value) |exception| _ = PyException_SetTraceback(exception, trace);
    }
    drop_maybe(kind);
    drop_maybe(traceback);
    return value;
}

// ---- Types and methods of our own --------------------------------------------------------------

pub const PlainFunction = *const fn (?*Object, ?*Object) callconv(.c) ?*Object;

/// What `tp_vectorcall_offset` leads to; the count has a flag in its highest bit.
pub const Vectorcall = *const fn (*Object, [*]const *Object, usize, ?*Object) callconv(.c) ?*Object;
/// Of a method of METH_FASTCALL and METH_KEYWORDS.
pub const NamedFunction = *const fn (
    ?*Object,
    [*]const *Object,
    ssize,
    ?*Object,
) callconv(.c) ?*Object;

/// The number of positional arguments of a vectorcall (PEP 590).
pub inline fn positional_count(flagged: usize) usize {
    return flagged & (std.math.maxInt(usize) >> 1);
}

pub const method_keywords: c_int = 0x0002;
pub const method_noargs: c_int = 0x0004;
pub const method_o: c_int = 0x0008;
pub const method_fastcall: c_int = 0x0080;

pub const MethodDef = extern struct {
    name: ?[*:0]const u8 = null,
    function: ?*const anyopaque = null,
    flags: c_int = 0,
    doc: ?[*:0]const u8 = null,
};

/// Takes arguments by name too; see `arguments.bind`.
pub fn named_method(name: [*:0]const u8, function: NamedFunction, doc: [*:0]const u8) MethodDef {
    const flags = method_fastcall | method_keywords;
    return .{ .name = name, .function = @ptrCast(function), .flags = flags, .doc = doc };
}

pub fn plain_method(name: [*:0]const u8, function: PlainFunction, doc: [*:0]const u8) MethodDef {
    return .{ .name = name, .function = @ptrCast(function), .flags = method_noargs, .doc = doc };
}

/// Of one argument.
pub fn one_method(name: [*:0]const u8, function: PlainFunction, doc: [*:0]const u8) MethodDef {
    return .{ .name = name, .function = @ptrCast(function), .flags = method_o, .doc = doc };
}

pub const Slot = extern struct { slot: c_int, function: ?*anyopaque };

pub fn slot(number: c_int, function: *const anyopaque) Slot {
    return .{ .slot = number, .function = @constCast(function) };
}

pub const slot_end: Slot = .{ .slot = 0, .function = null };
pub const nb_bool: c_int = 9;
pub const nb_index: c_int = 13;
pub const tp_call: c_int = 50;
pub const tp_clear: c_int = 51;
pub const tp_dealloc: c_int = 52;
pub const tp_doc: c_int = 56;
pub const tp_getset: c_int = 73;
pub const tp_hash: c_int = 59;
pub const tp_iter: c_int = 62;
pub const tp_iternext: c_int = 63;
pub const tp_members: c_int = 72;
pub const tp_methods: c_int = 64;
pub const tp_new: c_int = 65;
pub const tp_repr: c_int = 66;
pub const tp_richcompare: c_int = 67;
pub const tp_traverse: c_int = 71;

pub const Spec = extern struct {
    name: [*:0]const u8,
    basicsize: c_int,
    itemsize: c_int = 0,
    flags: c_uint = type_default,
    slots: [*]const Slot,
};

pub const type_default: c_uint = 0;
pub const type_no_instances: c_uint = 1 << 7;
/// One application shall not change what the next one, or the next request, is given.
pub const type_immutable: c_uint = 1 << 8;
/// In the stable ABI since 3.12, in every version since 3.9 under this number.
pub const type_has_vectorcall: c_uint = 1 << 11;
/// The garbage collector knows its instances: they hold what may hold them.
pub const type_collected: c_uint = 1 << 14;

const flag_list_subclass: c_ulong = 1 << 25;
const flag_tuple_subclass: c_ulong = 1 << 26;
const flag_bytes_subclass: c_ulong = 1 << 27;
const flag_unicode_subclass: c_ulong = 1 << 28;
const flag_exception_subclass: c_ulong = 1 << 30;

/// Where instances have what CPython looks for, as `PyType_FromSpec` is told of it.
pub const Member = extern struct {
    name: ?[*:0]const u8 = null,
    kind: c_int = 0,
    offset: ssize = 0,
    flags: c_int = 0,
    doc: ?[*:0]const u8 = null,

    pub fn offset_of(comptime name: [*:0]const u8, offset: usize) Member {
        const pyssize_t = 19;
        const readonly = 1;
        return .{ .name = name, .kind = pyssize_t, .offset = @intCast(offset), .flags = readonly };
    }
};

pub fn weak_references_at(comptime offset: usize) [2]Member {
    return .{ .offset_of("__weaklistoffset__", offset), .{} };
}

pub const Attribute = extern struct {
    name: ?[*:0]const u8 = null,
    get: ?*const fn (*Object, ?*anyopaque) callconv(.c) ?*Object = null,
    set: ?*const anyopaque = null,
    doc: ?[*:0]const u8 = null,
    closure: ?*anyopaque = null,
};

/// A copy of a function is the function, deep or not.
pub const copied_as_itself = [_]MethodDef{
    plain_method("__copy__", copy_itself, "The object itself"),
    one_method("__deepcopy__", copy_itself, "The object itself"),
};

fn copy_itself(object: ?*Object, _: ?*Object) callconv(.c) ?*Object {
    return new(object.?);
}

/// `__reduce__` of objects that belong to one request of one process: neither pickled nor copied.
pub const not_pickled = plain_method("__reduce__", refuse_to_pickle, "Raises TypeError");

fn refuse_to_pickle(object: ?*Object, _: ?*Object) callconv(.c) ?*Object {
    const kind: *Object = @ptrCast(@alignCast(object.?.type));
    return PyErr_Format(PyExc_TypeError, "cannot pickle or copy an instance of %R", kind);
}

/// A new instance of a type made by `PyType_FromSpec`, its own fields zeroed.
pub inline fn allocate(comptime T: type, kind: *Type) Error!*T {
    return @ptrCast(@alignCast(try owned(PyType_GenericAlloc(kind, 0))));
}

/// What a tp_traverse calls with each object that is held, until that does not return 0.
pub const Visit = *const fn (*Object, ?*anyopaque) callconv(.c) c_int;

/// Frees an instance of such a type, in its tp_dealloc.
pub fn deallocate(object: *Object) void {
    const kind = object.type;
    const free: *const fn (*Object) callconv(.c) void =
        @ptrCast(@alignCast(PyType_GetSlot(kind, 74)));
    free(object);
    // Each instance of a heap type holds a reference to it (since 3.8).
    drop(@ptrCast(@alignCast(kind)));
}

// ---- The ABI -----------------------------------------------------------------------------------

pub extern var _Py_NoneStruct: Object;
pub extern var _Py_TrueStruct: Object;
pub extern var _Py_FalseStruct: Object;
pub extern var PyList_Type: Type;
pub extern var PyTuple_Type: Type;
pub extern var PyCFunction_Type: Type;
pub extern var PyTraceBack_Type: Type;
pub extern var PyExc_AssertionError: *Object;
pub extern var PyExc_AttributeError: *Object;
pub extern var PyExc_NotImplementedError: *Object;
pub extern var PyExc_MemoryError: *Object;
pub extern var PyExc_OSError: *Object;
pub extern var PyExc_RuntimeError: *Object;
pub extern var PyExc_TypeError: *Object;
pub extern var PyExc_ValueError: *Object;
pub extern var PyExc_UnicodeError: *Object;
pub extern var PyExc_ConnectionResetError: *Object;
pub extern var PyExc_TimeoutError: *Object;

pub extern fn _Py_Dealloc(*Object) void;
pub extern fn PyUnicode_DecodeLatin1([*]const u8, ssize, ?[*:0]const u8) ?*Object;
pub extern fn PyUnicode_InternFromString([*:0]const u8) ?*Object;
pub extern fn PyUnicode_AsUTF8AndSize(*Object, *ssize) ?[*]const u8;
pub extern fn PyUnicode_AsLatin1String(*Object) ?*Object;
pub extern fn PyUnicode_GetLength(*Object) ssize;
pub extern fn PyUnicode_FromFormat([*:0]const u8, ...) ?*Object;
pub extern fn PyUnicode_CompareWithASCIIString(*Object, [*:0]const u8) c_int;
pub extern fn PyUnicode_Join(*Object, *Object) ?*Object;
pub extern fn PyBytes_FromStringAndSize(?[*]const u8, ssize) ?*Object;
pub extern fn PyBytes_AsStringAndSize(*Object, *[*]u8, *ssize) c_int;
pub extern fn PyBytes_AsString(*Object) ?[*]u8;
pub extern fn PyFloat_FromDouble(f64) ?*Object;
pub extern fn PyFloat_AsDouble(*Object) f64;
pub extern fn PyLong_FromLongLong(c_longlong) ?*Object;
pub extern fn PyLong_AsLongLong(*Object) c_longlong;
pub extern fn PyLong_AsSsize_t(*Object) ssize;
pub extern fn PyNumber_Index(*Object) ?*Object;
pub extern fn PyArg_ParseTupleAndKeywords(
    *Object,
    ?*Object,
    [*:0]const u8,
    [*:null]const ?[*:0]const u8,
    ...,
) c_int;
pub extern fn PyTuple_New(ssize) ?*Object;
pub extern fn PyTuple_SetItem(*Object, ssize, *Object) c_int;
pub extern fn PyTuple_Size(*Object) ssize;
pub extern fn PyTuple_GetItem(*Object, ssize) ?*Object;
pub extern fn PyList_New(ssize) ?*Object;
pub extern fn PyList_Append(*Object, *Object) c_int;
pub extern fn PyList_Size(*Object) ssize;
pub extern fn PyList_GetItem(*Object, ssize) ?*Object;
pub extern fn PySequence_List(*Object) ?*Object;
pub extern fn PyDict_New() ?*Object;
pub extern fn PyDict_Copy(*Object) ?*Object;
pub extern fn PyDict_SetItem(*Object, *Object, *Object) c_int;
pub extern fn PyDict_SetItemString(*Object, [*:0]const u8, *Object) c_int;
pub extern fn PyDict_DelItem(*Object, *Object) c_int;
pub extern fn PyDict_GetItemWithError(*Object, *Object) ?*Object;
pub extern fn PyDict_Next(*Object, *ssize, **Object, **Object) c_int;
pub extern fn PyDict_Size(*Object) ssize;
pub extern fn PyDict_GetItemString(*Object, [*:0]const u8) ?*Object;
pub extern fn PyObject_GetAttr(*Object, *Object) ?*Object;
pub extern fn PyObject_GetAttrString(*Object, [*:0]const u8) ?*Object;
pub extern fn PyObject_Call(*Object, *Object, ?*Object) ?*Object;
pub extern fn PyObject_CallNoArgs(*Object) ?*Object;
pub extern fn PyObject_CallFunctionObjArgs(*Object, ...) ?*Object;
pub extern fn PyObject_CallMethodObjArgs(*Object, *Object, ...) ?*Object;
pub extern fn PyObject_AsFileDescriptor(*Object) c_int;
pub extern fn PyObject_GetIter(*Object) ?*Object;
pub extern fn PyObject_IsTrue(*Object) c_int;
pub extern fn PyObject_Size(*Object) ssize;
pub extern fn PyObject_Repr(*Object) ?*Object;
pub extern fn PyObject_Hash(*Object) ssize;
pub extern fn PyObject_ClearWeakRefs(*Object) void;
pub extern fn PyObject_RichCompare(*Object, *Object, operation: c_int) ?*Object;
pub extern fn PyIter_Next(*Object) ?*Object;
pub extern fn PyImport_ImportModule([*:0]const u8) ?*Object;
pub extern fn PyImport_GetModule(*Object) ?*Object;
pub extern fn PyCFunction_GetSelf(*Object) ?*Object;
pub extern fn PyLong_FromVoidPtr(?*anyopaque) ?*Object;
pub extern fn PyLong_AsVoidPtr(*Object) ?*anyopaque;
pub extern fn PyCFunction_NewEx(*const MethodDef, ?*Object, ?*Object) ?*Object;
pub extern fn PyType_FromSpec(*const Spec) ?*Type;
pub extern fn PyType_IsSubtype(kind: *Type, other: *Type) c_int;
pub extern fn PyType_GetName(*Type) ?*Object;
pub extern fn PyType_GetFlags(*Type) c_ulong;
pub extern fn PyType_GetSlot(*Type, c_int) ?*anyopaque;
pub extern fn PyObject_GC_UnTrack(*Object) void;
pub extern fn PyObject_GC_Track(*Object) void;
pub extern fn PyObject_GC_IsTracked(*Object) c_int;
pub extern fn PyType_GenericAlloc(*Type, ssize) ?*Object;
pub extern fn PyErr_SetString(*Object, [*:0]const u8) void;
/// Returns null.
pub extern fn PyErr_Format(*Object, [*:0]const u8, ...) ?*Object;
pub extern fn PyErr_Occurred() ?*Object;
pub extern fn PyErr_ExceptionMatches(*Object) c_int;
pub extern fn PyErr_Clear() void;
pub extern fn PyErr_Fetch(*?*Object, *?*Object, *?*Object) void;
pub extern fn PyErr_Restore(?*Object, ?*Object, ?*Object) void;
pub extern fn PyErr_NormalizeException(*?*Object, *?*Object, *?*Object) void;
pub extern fn PyErr_WriteUnraisable(?*Object) void;
pub extern fn PyErr_CheckSignals() c_int;
pub extern fn PyErr_NoMemory() ?*Object;
pub extern fn PyException_GetCause(*Object) ?*Object;
pub extern fn PyException_GetContext(*Object) ?*Object;
pub extern fn PyException_SetTraceback(*Object, *Object) c_int;
pub extern fn PyThread_get_thread_ident() c_ulong;
pub extern fn PyThreadState_SetAsyncExc(c_ulong, ?*Object) c_int;
pub extern fn PyEval_SaveThread() ?*ThreadState;
pub extern fn PyEval_RestoreThread(?*ThreadState) void;
