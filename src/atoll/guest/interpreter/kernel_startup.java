// Runs inside a Java kernel right after its start: variables for the length of one cell. A program cannot change its own
// environment in Java; the map behind `System.getenv` can be, where the kernel's start has opened it.
class __Atoll {
    private static final java.util.Map<String, String> was = new java.util.HashMap<>();

    @SuppressWarnings("unchecked")
    private static java.util.Map<String, String> environment() throws Exception {
        var shown = System.getenv();
        var field = shown.getClass().getDeclaredField("m");
        field.setAccessible(true);
        return (java.util.Map<String, String>) field.get(shown);
    }

    private static void set(String name, String value) throws Exception {
        if (value == null) {
            environment().remove(name);
            System.clearProperty(name);
        } else {
            environment().put(name, value);
            System.setProperty(name, value);
        }
    }

    static void keep(String name, String value) throws Exception {
        set(name, value);
    }

    static void enter(String name, String value) throws Exception {
        was.put(name, System.getenv(name));
        set(name, value);
    }

    static void leave() throws Exception {
        for (var one : was.entrySet()) set(one.getKey(), one.getValue());
        was.clear();
    }
}
