// Receives webhooks and verifies their signature, with the JDK alone: WEBHOOK_SECRET=whsec_… java Receiver.java
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.time.Instant;
import java.util.Base64;
import java.util.concurrent.Executors;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

public class Receiver {
    static final int MAX_BODY_BYTES = 1024 * 1024;
    static final long MAX_AGE_SECONDS = 300;
    static final byte[] KEY = Base64.getDecoder().decode(System.getenv("WEBHOOK_SECRET").replaceFirst("^whsec_", ""));

    public static void main(String[] arguments) throws IOException {
        int port = Integer.parseInt(System.getenv().getOrDefault("PORT", "9000"));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.createContext("/", Receiver::receive);
        server.start();
        System.out.println("listening");
    }

    static void receive(HttpExchange exchange) throws IOException {
        try (exchange) {
            byte[] body = exchange.getRequestBody().readNBytes(MAX_BODY_BYTES + 1);
            boolean genuine = body.length <= MAX_BODY_BYTES && isGenuine(exchange, body);
            if (genuine) {
                // A message that is sent again has the same webhook-id: ignore one that you know. Parse the body now.
                System.out.println(header(exchange, "webhook-id") + " " + new String(body, StandardCharsets.UTF_8));
            }
            exchange.sendResponseHeaders(genuine ? 204 : 401, -1);
        }
    }

    static boolean isGenuine(HttpExchange exchange, byte[] body) {
        try {
            long sent = Long.parseLong(header(exchange, "webhook-timestamp"));
            if (Math.abs(Instant.now().getEpochSecond() - sent) > MAX_AGE_SECONDS) return false;
            Mac mac = Mac.getInstance("HmacSHA256");
            mac.init(new SecretKeySpec(KEY, "HmacSHA256"));
            mac.update((header(exchange, "webhook-id") + "." + sent + ".").getBytes(StandardCharsets.UTF_8));
            byte[] expected = ("v1," + Base64.getEncoder().encodeToString(mac.doFinal(body))).getBytes(StandardCharsets.UTF_8);
            for (String signature : header(exchange, "webhook-signature").split(" ")) { // several while the secret changes
                if (MessageDigest.isEqual(expected, signature.getBytes(StandardCharsets.UTF_8))) return true;
            }
            return false;
        } catch (Exception error) { // a header is missing or malformed
            return false;
        }
    }

    static String header(HttpExchange exchange, String name) {
        String value = exchange.getRequestHeaders().getFirst(name);
        if (value == null) throw new IllegalArgumentException(name + " is missing");
        return value;
    }
}
