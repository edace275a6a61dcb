import io.confluent.parallelconsumer.ParallelConsumerOptions;
import io.confluent.parallelconsumer.ParallelConsumerOptions.ProcessingOrder;
import io.confluent.parallelconsumer.ParallelStreamProcessor;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;

/**
 * The peers that run on the JVM, each in its library's usual form. One line of JSON on standard output says what a run came to, in the words
 * of `bench/src/run.rs`.
 *
 * A JVM is slow until it has compiled what runs often: each peer first works through records that are not measured.
 */
public final class Peers {
    public static void main(String[] args) throws Exception {
        Map<String, String> given = new HashMap<>();
        for (int i = 1; i + 1 < args.length; i += 2) {
            given.put(args[i].substring(2), args[i + 1]);
        }
        String line = switch (args[0]) {
            case "parallel-consumer" -> new Parallel(given).run();
            case "kafka-streams" -> new Streams(given).run();
            default -> throw new IllegalArgumentException("no peer has the name `" + args[0] + "`");
        };
        System.out.println(line);
        // A client's thread that hangs must not hold the benchmark up.
        Runtime.getRuntime().halt(0);
    }

    /** Time and CPU time of this process since its first record. */
    private static final class Watch {
        private volatile boolean running;
        private long started;
        private long cpu;

        void start() {
            if (!running) {
                begin();
            }
        }

        private synchronized void begin() {
            if (!running) {
                started = System.nanoTime();
                cpu = cpuNanos();
                running = true;
            }
        }

        String stop(long records) {
            double seconds = (System.nanoTime() - started) / 1e9;
            double cpuSeconds = (cpuNanos() - cpu) / 1e9;
            return String.format(java.util.Locale.ROOT,
                "{\"records\": %d, \"seconds\": %.6f, \"cpu_seconds\": %.6f, \"calls\": %d}", records, seconds, cpuSeconds, records);
        }

        private static long cpuNanos() {
            return ((com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime();
        }
    }

    /** Confluent Parallel Consumer: each record takes as many microseconds as its value begins with. */
    private static final class Parallel {
        private final Map<String, String> given;

        Parallel(Map<String, String> given) {
            this.given = given;
        }

        String run() throws InterruptedException {
            long warm = Long.parseLong(given.get("warm-records"));
            if (warm > 0) {
                consume(given.get("warm-input"), given.get("group") + "-warm", warm);
            }
            return consume(given.get("input"), given.get("group"), Long.parseLong(given.get("records")));
        }

        private String consume(String topic, String group, long records) throws InterruptedException {
            Properties consumer = new Properties();
            consumer.put("bootstrap.servers", given.get("bootstrap"));
            consumer.put("group.id", group);
            consumer.put("auto.offset.reset", "earliest");
            consumer.put("enable.auto.commit", "false");
            var options = ParallelConsumerOptions.<String, String>builder()
                .ordering(ProcessingOrder.valueOf(given.get("order").toUpperCase(java.util.Locale.ROOT)))
                .maxConcurrency(Integer.parseInt(given.get("concurrency")))
                .consumer(new KafkaConsumer<>(consumer, new StringDeserializer(), new StringDeserializer()))
                .build();
            var processor = ParallelStreamProcessor.createEosStreamProcessor(options);
            var watch = new Watch();
            var done = new AtomicLong();
            processor.subscribe(List.of(topic));
            processor.poll(context -> {
                watch.start();
                work(context.value());
                done.incrementAndGet();
            });
            while (done.get() < records) {
                LockSupport.parkNanos(500_000);
            }
            String line = watch.stop(records);
            processor.closeDontDrainFirst(Duration.ofSeconds(10));
            return line;
        }

        private static void work(String value) {
            int end = value.indexOf(' ');
            long micros = Long.parseLong(end < 0 ? value : value.substring(0, end));
            long until = System.nanoTime() + micros * 1000;
            // It may return early, and `Thread.sleep` takes whole milliseconds.
            for (long left = micros * 1000; left > 0; left = until - System.nanoTime()) {
                LockSupport.parkNanos(left);
            }
        }
    }

    /** Kafka Streams, exactly once, a transaction each 100 ms: copies records. */
    private static final class Streams {
        private static final int WARM_SHARE = 4;
        private final Map<String, String> given;

        Streams(Map<String, String> given) {
            this.given = given;
        }

        String run() throws Exception {
            long records = Long.parseLong(given.get("records"));
            String output = given.get("output");
            try (Admin admin = Admin.create(Map.<String, Object>of("bootstrap.servers", given.get("bootstrap")))) {
                String warm = output + "-warm";
                int partitions = admin.describeTopics(List.of(output)).allTopicNames().get().get(output).partitions().size();
                admin.createTopics(List.of(new NewTopic(warm, partitions, (short) 1))).all().get();
                copy(admin, warm, given.get("group") + "-warm", records / WARM_SHARE);
                admin.deleteTopics(List.of(warm)).all().get();
                return copy(admin, output, given.get("group"), records);
            }
        }

        /** Ends once so many records are committed. */
        private String copy(Admin admin, String output, String group, long records) throws Exception {
            var state = Files.createTempDirectory("bench-streams-");
            Properties config = new Properties();
            config.put(StreamsConfig.APPLICATION_ID_CONFIG, group);
            config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, given.get("bootstrap"));
            config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
            config.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 100);
            config.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, Runtime.getRuntime().availableProcessors());
            config.put(StreamsConfig.STATE_DIR_CONFIG, state.toString());
            config.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
            // As the other contenders have it; Streams' own default is 100.
            config.put(StreamsConfig.producerPrefix("linger.ms"), 5);
            config.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, Serdes.ByteArraySerde.class.getName());
            config.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, Serdes.ByteArraySerde.class.getName());
            var watch = new Watch();
            var builder = new StreamsBuilder();
            builder.<byte[], byte[]>stream(given.get("input")).peek((key, value) -> watch.start()).to(output);
            try (var streams = new KafkaStreams(builder.build(), config)) {
                streams.start();
                long committed = 0;
                while (committed < records) {
                    Thread.sleep(10);
                    committed = committed(admin, group);
                }
                return watch.stop(committed);
            } finally {
                try (var files = Files.walk(state)) {
                    files.sorted(java.util.Comparator.reverseOrder()).forEach(path -> path.toFile().delete());
                }
            }
        }

        /** Inputs begin at offset 0 and have no gaps. */
        private static long committed(Admin admin, String group) throws Exception {
            try {
                var offsets = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
                return offsets.values().stream().mapToLong(offset -> offset == null ? 0 : offset.offset()).sum();
            } catch (java.util.concurrent.ExecutionException notYet) {
                if (notYet.getCause() instanceof org.apache.kafka.common.errors.RetriableException
                    || notYet.getCause() instanceof org.apache.kafka.common.errors.GroupIdNotFoundException) {
                    return 0;
                }
                throw notYet;
            }
        }
    }
}
