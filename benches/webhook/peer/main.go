// The peer of the admission benchmark: controller-runtime's webhook server and admission handler
// with the rules of KSMScale, written as its documentation shows (typed objects, a Decoder,
// field errors collected in a list). It answers the same bodies as the operator, with the same
// verdicts; the benchmark checks every answer.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	accessv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	accessclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

var group = schema.GroupVersion{Group: "monitor.example.com", Version: "v1alpha1"}

type KSMScale struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              Spec            `json:"spec"`
	Status            json.RawMessage `json:"status,omitempty"`
}

type Spec struct {
	NodesPerMonitor    *int32     `json:"nodesPerMonitor,omitempty"`
	MonitorImage       *string    `json:"monitorImage,omitempty"`
	Namespace          *string    `json:"namespace,omitempty"`
	DeletionProtection bool       `json:"deletionProtection,omitempty"`
	Resources          *Resources `json:"resources,omitempty"`
	Sharding           *Sharding  `json:"sharding,omitempty"`
}

type Resources struct {
	Requests map[string]resource.Quantity `json:"requests,omitempty"`
	Limits   map[string]resource.Quantity `json:"limits,omitempty"`
}

type Sharding struct {
	Enabled             bool          `json:"enabled"`
	ShardCount          *int32        `json:"shardCount,omitempty"`
	MinReplicasPerShard *int32        `json:"minReplicasPerShard,omitempty"`
	MaxReplicasPerShard *int32        `json:"maxReplicasPerShard,omitempty"`
	Distribution        *Distribution `json:"distribution,omitempty"`
}

type Distribution struct {
	SpreadAcrossNodes bool   `json:"spreadAcrossNodes,omitempty"`
	EnablePDB         bool   `json:"enablePDB,omitempty"`
	MaxUnavailable    *int32 `json:"maxUnavailable,omitempty"`
}

// DeepCopyObject serves runtime.Object; nothing here copies, so a shallow copy will do.
func (k *KSMScale) DeepCopyObject() runtime.Object { c := *k; return &c }

var (
	imagePattern = regexp.MustCompile(`^([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$`)
	labelPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
)

func atLeast(errs field.ErrorList, path *field.Path, value *int32, bound int32) field.ErrorList {
	if value != nil && *value < bound {
		text := fmt.Sprintf("%s in body should be greater than or equal to %d", path, bound)
		errs = append(errs, field.Invalid(path, *value, text))
	}
	return errs
}

func atMost(errs field.ErrorList, path *field.Path, value *int32, bound int32) field.ErrorList {
	if value != nil && *value > bound {
		text := fmt.Sprintf("%s in body should be less than or equal to %d", path, bound)
		errs = append(errs, field.Invalid(path, *value, text))
	}
	return errs
}

func matches(errs field.ErrorList, path *field.Path, value *string, longest int, pattern *regexp.Regexp) field.ErrorList {
	if value != nil && len(*value) > longest {
		errs = append(errs, field.TooLong(path, *value, longest))
	}
	if value != nil && !pattern.MatchString(*value) {
		errs = append(errs, field.Invalid(path, *value, fmt.Sprintf("%s in body should match '%s'", path, pattern)))
	}
	return errs
}

func validate(spec *Spec) field.ErrorList {
	var errs field.ErrorList
	at := field.NewPath("spec")
	errs = atLeast(errs, at.Child("nodesPerMonitor"), spec.NodesPerMonitor, 9)
	errs = matches(errs, at.Child("monitorImage"), spec.MonitorImage, 512, imagePattern)
	errs = matches(errs, at.Child("namespace"), spec.Namespace, 63, labelPattern)
	if r := spec.Resources; r != nil {
		for _, name := range []string{"cpu", "memory"} {
			request, limit := r.Requests[name], r.Limits[name]
			if !limit.IsZero() && request.Cmp(limit) > 0 {
				errs = append(errs, field.Invalid(at.Child("resources", "requests", name), request.String(),
					fmt.Sprintf("must not be above limits.%s: lower requests.%s or raise limits.%s", name, name, name)))
			}
		}
	}
	s := spec.Sharding
	if s == nil {
		return errs
	}
	at = at.Child("sharding")
	errs = atLeast(errs, at.Child("shardCount"), s.ShardCount, 2)
	errs = atMost(errs, at.Child("shardCount"), s.ShardCount, 10)
	errs = atLeast(errs, at.Child("minReplicasPerShard"), s.MinReplicasPerShard, 1)
	errs = atMost(errs, at.Child("minReplicasPerShard"), s.MinReplicasPerShard, 100)
	errs = atLeast(errs, at.Child("maxReplicasPerShard"), s.MaxReplicasPerShard, 1)
	errs = atMost(errs, at.Child("maxReplicasPerShard"), s.MaxReplicasPerShard, 100)
	if d := s.Distribution; d != nil {
		errs = atLeast(errs, at.Child("distribution", "maxUnavailable"), d.MaxUnavailable, 0)
	}
	if s.Enabled && s.ShardCount == nil {
		errs = append(errs, field.Required(at.Child("shardCount"),
			"sharding is enabled without a number of shards: set shardCount to a value from 2 to 10, or enabled to false"))
	}
	if low, high := s.MinReplicasPerShard, s.MaxReplicasPerShard; low != nil && high != nil && *high < *low {
		errs = append(errs, field.Invalid(at.Child("maxReplicasPerShard"), *high,
			"must not be below minReplicasPerShard (default 1; maxReplicasPerShard defaults to 4): raise maxReplicasPerShard or lower minReplicasPerShard"))
	}
	return errs
}

func warnings(spec *Spec, nodes int32) []string {
	perPod := int32(15)
	if spec.NodesPerMonitor != nil {
		perPod = *spec.NodesPerMonitor
	}
	pods := max(1, (nodes+perPod-1)/perPod)
	if (spec.Sharding == nil || !spec.Sharding.Enabled) && pods > 1 {
		return []string{fmt.Sprintf("spec.sharding: without sharding each of %d pods exports every series; set spec.sharding", pods)}
	}
	return nil
}

// mayCreatePods asks whether the requester may put pods where the object wants them.
func (h *handler) mayCreatePods(ctx context.Context, request admission.Request, spec *Spec) (bool, error) {
	user, namespace := request.UserInfo, "monitoring"
	if spec.Namespace != nil {
		namespace = *spec.Namespace
	}
	extra := make(map[string]accessv1.ExtraValue, len(user.Extra))
	for key, value := range user.Extra {
		extra[key] = accessv1.ExtraValue(value)
	}
	review := &accessv1.SubjectAccessReview{Spec: accessv1.SubjectAccessReviewSpec{
		User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
		ResourceAttributes: &accessv1.ResourceAttributes{
			Version: "v1", Resource: "pods", Verb: "create", Namespace: namespace,
		},
	}}
	answer, err := h.access.Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return answer.Status.Allowed && !answer.Status.Denied, nil
}

// granting is an API server without a network, which grants every SubjectAccessReview.
type granting struct{}

func (granting) RoundTrip(request *http.Request) (*http.Response, error) {
	if _, err := io.Copy(io.Discard, request.Body); err != nil {
		return nil, err
	}
	const answer = `{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","metadata":{},"spec":{},"status":{"allowed":true}}`
	return &http.Response{
		StatusCode: http.StatusCreated,
		Header:     http.Header{"Content-Type": {"application/json"}},
		Body:       io.NopCloser(strings.NewReader(answer)),
		Request:    request,
	}, request.Body.Close()
}

type handler struct {
	decoder admission.Decoder
	access  accessclient.SubjectAccessReviewInterface
	nodes   int32
	mutate  bool
}

func (h *handler) Handle(ctx context.Context, request admission.Request) admission.Response {
	object := &KSMScale{}
	if err := h.decoder.Decode(request, object); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	if h.mutate {
		return h.defaults(request, object)
	}
	old := &KSMScale{}
	if request.Operation == admissionv1.Update {
		if err := h.decoder.DecodeRaw(request.OldObject, old); err != nil {
			return admission.Errored(http.StatusBadRequest, err)
		}
		if object.DeletionTimestamp != nil || equality.Semantic.DeepEqual(object.Spec, old.Spec) {
			return admission.Allowed("")
		}
	}
	if errs := validate(&object.Spec); len(errs) > 0 {
		kind := group.WithKind("KSMScale").GroupKind()
		status := apierrors.NewInvalid(kind, object.Name, errs).Status()
		return admission.Response{AdmissionResponse: admissionv1.AdmissionResponse{Result: &status}}
	}
	moves := !equality.Semantic.DeepEqual(object.Spec.Namespace, old.Spec.Namespace) ||
		!equality.Semantic.DeepEqual(object.Spec.MonitorImage, old.Spec.MonitorImage)
	if request.Operation == admissionv1.Create || moves {
		if allowed, err := h.mayCreatePods(ctx, request, &object.Spec); err != nil {
			return admission.Errored(http.StatusInternalServerError, err)
		} else if !allowed {
			return admission.Denied("the requester may not create pods there")
		}
	}
	return admission.Allowed("").WithWarnings(warnings(&object.Spec, h.nodes)...)
}

func (h *handler) defaults(request admission.Request, object *KSMScale) admission.Response {
	if object.Spec.NodesPerMonitor == nil {
		nodes := int32(15)
		object.Spec.NodesPerMonitor = &nodes
	}
	if object.Spec.MonitorImage == nil {
		image := "registry.k8s.io/kube-state-metrics/kube-state-metrics:v2.10.1"
		object.Spec.MonitorImage = &image
	}
	if object.Spec.Namespace == nil {
		namespace := "monitoring"
		object.Spec.Namespace = &namespace
	}
	raw, err := json.Marshal(object)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	return admission.PatchResponseFromRaw(request.Object.Raw, raw)
}

func main() {
	port := flag.Int("port", 0, "where to listen on 127.0.0.1")
	certs := flag.String("cert-dir", "", "folder with tls.crt and tls.key")
	nodes := flag.Int("nodes", 100, "nodes that warnings speak of")
	flag.Parse()
	ctrl.SetLogger(zap.New())
	scheme := runtime.NewScheme()
	scheme.AddKnownTypeWithName(group.WithKind("KSMScale"), &KSMScale{})
	metav1.AddToGroupVersion(scheme, group)
	server := webhook.NewServer(webhook.Options{
		Host: "127.0.0.1", Port: *port, CertDir: *certs,
		TLSOpts: []func(*tls.Config){func(c *tls.Config) {
			c.MinVersion = tls.VersionTLS13
			c.NextProtos = []string{"http/1.1"}
		}},
	})
	decoder := admission.NewDecoder(scheme)
	client, err := accessclient.NewForConfig(&rest.Config{
		Host: "http://api-server", Transport: granting{}, QPS: -1,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
	access := client.SubjectAccessReviews()
	at := "-monitor-example-com-v1alpha1-ksmscale"
	server.Register("/validate"+at, &admission.Webhook{Handler: &handler{decoder, access, int32(*nodes), false}})
	server.Register("/mutate"+at, &admission.Webhook{Handler: &handler{decoder, access, int32(*nodes), true}})
	if err := server.Start(ctrl.SetupSignalHandler()); err != nil {
		fmt.Fprintln(os.Stderr, "peer on port "+strconv.Itoa(*port)+":", err)
		os.Exit(1)
	}
}
